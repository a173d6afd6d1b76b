"""The stream of real images: its order, its addresses, its errors; in-process and through Ray Data."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from raysid.data import ImageSource, ImageStream, ray_blocks
from raysid.data.scikit_learn import DigitsSource
from raysid.data.source import even_shards
from tests.support.processes import wait_until

DIGITS = 1797


class Numbers(ImageSource):
    """A source of images of 1x1x2 whose two bytes are their index; the label is the index too."""

    name, image_shape, num_classes, pixel_max = "numbers", (1, 1, 2), 0, 255

    def __init__(self, num_images: int = 10, block: int = 3) -> None:
        self.count, self.block = num_images, block
        self.passes = 0
        self.images_read = 0

    @property
    def shard_sizes(self):
        return even_shards(self.count, self.block)

    @property
    def label_counts(self):
        return np.ones(self.count, np.int64)

    def blocks(self, pieces=None):
        self.passes += 1
        yield from super().blocks(pieces)

    def read(self, piece):
        index = np.arange(piece.first, piece.last) + piece.shard * self.block
        self.images_read += len(index)
        image = np.stack([index // 256, index % 256], axis=-1).astype(np.uint8)[:, None, None, :]
        yield {"image": image, "label": index}


def stream_of(source, seed=0, window=4, **options):
    return ImageStream(source.blocks, source.shard_sizes, seed, window, **options)


def spelt(images):
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]


# -- the order ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 4, 10, 99])
@pytest.mark.parametrize("prefetch", [False, True])
def test_every_epoch_has_each_image_once_with_its_label(window, prefetch):
    with stream_of(Numbers(), window=window, prefetch=prefetch) as stream:
        for epoch in range(4):
            images, labels = stream.read(epoch * 10, 10)
            assert images.shape == (10, 1, 1, 2) and images.dtype == np.uint8 and labels.dtype == np.int64
            np.testing.assert_array_equal(spelt(images), labels)
            assert sorted(labels) == list(range(10))


def test_epochs_and_seeds_differ_and_repeat():
    def labels(seed):
        return stream_of(Numbers(100), seed=seed, window=100).read(0, 300)[1].reshape(3, 100)

    first = labels(1)
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[1], first[2])
    assert not np.array_equal(first, labels(2))
    np.testing.assert_array_equal(first, labels(1))


def test_the_order_is_the_same_on_every_platform_and_version():
    """A resumed run must read the images that the interrupted run would have read."""
    whole = stream_of(Numbers(), seed=7, window=10).read(0, 20)[1]
    assert whole.tolist() == [8, 5, 3, 4, 9, 1, 6, 2, 0, 7, 6, 1, 3, 8, 4, 9, 5, 7, 0, 2]
    labels = stream_of(Numbers(), seed=7, window=6, batch_size=4, lanes=2).read(0, 20)[1]
    assert labels.tolist() == [0, 1, 5, 7, 2, 4, 6, 8, 3, 9, 8, 6, 9, 5, 7, 1, 3, 4, 2, 0]


@pytest.mark.parametrize("block", [1, 7, 40])
def test_with_a_window_of_the_whole_set_the_shards_do_not_matter(block):
    expected = stream_of(Numbers(40), window=40).read(0, 80)[1]
    np.testing.assert_array_equal(stream_of(Numbers(40, block), window=99).read(0, 80)[1], expected)


def test_a_window_mixes_whole_shards_and_each_epoch_other_ones():
    stream = stream_of(Numbers(400, block=20), window=100)
    labels = stream.read(0, 800)[1].reshape(2, 4, 100)
    shards = labels // 20
    for window in labels.reshape(8, 100):
        assert np.mean(np.diff(window) == 1) < 0.1
    held = [[sorted(set(window)) for window in epoch] for epoch in shards.tolist()]
    assert all(len(window) == 5 for epoch in held for window in epoch)
    assert sorted(held[0]) != sorted(held[1])


def test_xflip_mirrors_half_of_the_images_others_in_each_epoch_wherever_reading_begins():
    plain = stream_of(Numbers(100), window=30).read(0, 200)
    images, labels = stream_of(Numbers(100), window=30, xflip=True).read(0, 200)
    np.testing.assert_array_equal(labels, plain[1])
    mirrored = (images != plain[0]).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(images[mirrored], plain[0][mirrored][..., ::-1])
    by_epoch = [set(labels[:100][mirrored[:100]]), set(labels[100:][mirrored[100:]])]
    assert all(35 < len(epoch) < 65 for epoch in by_epoch) and by_epoch[0] != by_epoch[1]
    again = stream_of(Numbers(100), window=30, xflip=True).read(140, 20)[0]
    np.testing.assert_array_equal(again, images[140:160])


# -- lanes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "block", "window", "batch", "lanes"),
    [(100, 7, 20, 8, 4), (100, 7, 90, 8, 8), (101, 1, 13, 7, 3), (50, 50, 49, 3, 16), (400, 16, 64, 32, 4)],
)
def test_lanes_lose_and_repeat_no_image_of_an_epoch(images, block, window, batch, lanes):
    order = {"window": window, "batch_size": batch, "lanes": lanes}
    stream = stream_of(Numbers(images, block), **order)
    labels = stream.read(0, 4 * images)[1].reshape(4, images)
    assert all(sorted(epoch) == list(range(images)) for epoch in labels.tolist())
    assert len({tuple(epoch) for epoch in labels.tolist()}) == 4
    place = int(0.9 * images) + 3 * images
    resumed = stream_of(Numbers(images, block), **order).read(place, batch)[1]
    np.testing.assert_array_equal(resumed[: 4 * images - place], labels.flat[place : place + batch])


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("prefetch", [False, True])
def test_ranks_read_one_stream_each_only_its_share(ranks, prefetch):
    images, batch, steps = 960, 32, 60
    order = {"window": 128, "batch_size": batch, "lanes": 8}
    whole = stream_of(Numbers(images, 16), **order).read(0, batch * steps)[1]
    share = batch // ranks
    sources = [Numbers(images, 16) for _ in range(ranks)]
    for rank, source in enumerate(sources):
        part = (rank * share, (rank + 1) * share)
        with stream_of(source, parts=[part], prefetch=prefetch, **order) as stream:
            for step in range(steps):
                start = step * batch + part[0]
                np.testing.assert_array_equal(stream.read(start, share)[1], whole[start : start + share])
    read = sum(source.images_read for source in sources)
    ahead = 2 * 128 + ranks * 8 * 16 if prefetch else 0
    assert batch * steps <= read <= 1.2 * batch * steps + ahead  # a shard in which a lane ends is read twice


def test_reading_ahead_is_bounded_and_follows_the_reader():
    source = Numbers(4000, block=10)
    with stream_of(source, window=200, batch_size=20, lanes=4, prefetch=True) as stream:
        stream.read(0, 20)
        for place in (0, 2000, 7000):
            before = source.images_read
            stream.read(place, 20)
            wait_until(lambda: stream.loaded_until(place) >= place + 200, 10, "what is read ahead")  # noqa: B023
            time.sleep(0.05)  # time to read further, which it must not
            assert source.images_read - before <= 400 + 4 * 10 + 10


# -- addresses ---------------------------------------------------------------------------------------------


class FewDigits(DigitsSource):
    """The first 400 digits, in four shards."""

    @property
    def shard_sizes(self):
        return super().shard_sizes[:4]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("window", [7, 50, DIGITS])
@pytest.mark.parametrize("prefetch", [False, True])
def test_ranks_that_read_interleaved_slices_read_the_one_stream(ranks, window, prefetch):
    source = FewDigits(images_per_shard=100)
    batch, steps = 60, 15  # across two ends of epochs
    whole_images, whole_labels = stream_of(source, window=window).read(0, batch * steps)
    share = batch // ranks
    streams = [stream_of(source, window=window, prefetch=prefetch) for _ in range(ranks)]
    for step in range(steps):
        for rank, stream in enumerate(streams):
            start = step * batch + rank * share
            images, labels = stream.read(start, share)
            np.testing.assert_array_equal(images, whole_images[start : start + share])
            np.testing.assert_array_equal(labels, whole_labels[start : start + share])
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_read_anywhere_equals_the_uninterrupted_stream(prefetch):
    whole = stream_of(Numbers(), window=4).read(0, 60)[1]
    with stream_of(Numbers(), window=4, prefetch=prefetch) as jumping:
        generator = np.random.default_rng(0)
        for start in generator.integers(0, 45, size=60):
            count = int(generator.integers(1, 15))
            np.testing.assert_array_equal(jumping.read(int(start), count)[1], whole[start : start + count])
    for start in range(40):
        np.testing.assert_array_equal(
            stream_of(Numbers(), window=4).read(start, 5)[1], whole[start : start + 5]
        )


def test_a_read_does_not_change_what_an_earlier_one_gave():
    stream = stream_of(Numbers(), window=4)
    first = stream.read(0, 4)[0]
    kept = first.copy()
    stream.read(4, 20)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # the caller owns the arrays
    np.testing.assert_array_equal(stream.read(0, 4)[0], kept)


# -- what it costs -----------------------------------------------------------------------------------------


def test_a_set_that_fits_the_window_is_read_once():
    source = Numbers()
    stream = stream_of(source, window=10)
    for start in (0, 5, 95, 3, 1000):
        stream.read(start, 7)
    assert source.passes == 1


@pytest.mark.parametrize("lanes", [1, 4])
def test_sequential_reads_make_one_pass_and_read_nothing_that_is_not_needed_yet(lanes):
    source = Numbers(100, block=5)
    stream = stream_of(source, window=20, batch_size=4, lanes=lanes)
    for start in range(0, 300, 4):
        stream.read(start, 4)
        assert source.images_read <= start + 4 + 20 + lanes * 5  # shards that overlap windows of two lanes
    assert source.images_read <= 300 + 3 * lanes * 5 and source.passes == 1


@pytest.mark.parametrize("start", [90, 95, 190, 290])
def test_a_resume_reads_the_window_of_its_position_and_no_more(start):
    source = Numbers(100, block=7)
    labels = stream_of(source, window=20).read(start, 4)[1]
    assert source.images_read <= 20 + 6  # a shard may extend past the window's end
    np.testing.assert_array_equal(
        labels, stream_of(Numbers(100, block=7), window=20).read(0, 300)[1][start:][:4]
    )


def test_going_back_within_the_batch_opens_nothing():
    source = Numbers(100)
    stream = stream_of(source, window=20, batch_size=20, lanes=4)
    stream.read(30, 10)
    stream.read(20, 20)
    assert source.passes == 1
    stream.read(0, 8)
    assert source.passes == 2


def test_wait_is_counted_and_prefetch_hides_it():
    class Slow(Numbers):
        def blocks(self, pieces=None):
            for block in super().blocks(pieces):
                time.sleep(0.02)
                yield block

    def waited(prefetch):
        with stream_of(Slow(40, block=4), window=4, prefetch=prefetch) as stream:
            for start in range(0, 40, 4):
                stream.read(start, 4)
                if prefetch:  # the learner's step takes as long as reading the next window
                    wait_until(lambda: stream.loaded_until(start + 4) >= start + 8, 10, "the next window")  # noqa: B023
            return stream.wait_seconds

    plain = waited(prefetch=False)
    assert plain > 0.2
    assert waited(prefetch=True) < plain / 2


# -- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [4, 10, 50])
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize(
    ("announced", "message"),
    [
        (12, r"^the source yielded \d+ real images where its shards have \d+$"),
        (9, r"^the source yields more real images than the \d+ that its shards have$"),
    ],
)
def test_a_wrong_count_is_an_error(announced, message, window, prefetch):
    def read(pieces):
        for piece in pieces:
            block = next(Numbers(12, block=12).read(piece))
            missing = 0 if announced == 9 else int(piece.last == 12) * 2
            added = int(announced == 9 and piece.last == 9)
            rows = [*range(piece.last - piece.first - missing), *[0] * added]
            yield {name: column[rows] for name, column in block.items()}

    with ImageStream(read, [announced], 0, window, prefetch=prefetch) as stream:
        for _ in range(2):  # and the error persists
            with pytest.raises(ValueError, match=message):
                for start in range(0, 1000 * announced, announced):
                    stream.read(start, announced)


@pytest.mark.parametrize(
    ("rows", "words"), [([0, 1], "yielded 2 real images"), ([0, 1, 2, 2], "yielded more real images")]
)
def test_a_piece_with_a_wrong_number_of_images_is_refused_when_read(rows, words):
    """Otherwise every later image of the pass would be at a wrong position."""

    class Damaged(Numbers):
        def read(self, piece):
            block = next(super().read(piece))
            yield {name: column[rows] if piece.shard == 1 else column for name, column in block.items()}

    source = Damaged(9)
    with stream_of(source, window=9) as stream, pytest.raises(ValueError, match=f"shard=1, .* {words}"):
        stream.read(0, 9)
    handed = []
    with pytest.raises(ValueError, match=words):
        handed.extend(source.blocks())
    assert sum(len(block["label"]) for block in handed) <= 3 + min(len(rows), 3)  # no surplus images


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.zeros((2, 1, 4, 4)), np.zeros(2, int), "images of float64"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, int), "images of uint8"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(3, int), "labels of int64"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2), "labels of float64"),
    ],
)
def test_blocks_that_are_not_labelled_images(image, label, message):
    stream = ImageStream(lambda _: [{"image": image, "label": label}], [2], 0, 2)
    with pytest.raises(ValueError, match=message):
        stream.read(0, 1)


def test_images_of_two_shapes():
    blocks = [{"image": np.zeros((2, 1, n, n), np.uint8), "label": np.zeros(2, int)} for n in (4, 5)]
    with pytest.raises(ValueError, match=r"uint8 \(n, 1, 4, 4\) was expected, after image 2"):
        ImageStream(lambda _: blocks, [4], 0, 2).read(0, 4)


def test_wrong_arguments():
    for arguments in [([], 0, 1), ([3, 0], 0, 1), ([1], -1, 1), ([1], 0, 0)]:
        with pytest.raises(ValueError, match="an image stream needs"):
            ImageStream(Numbers().blocks, *arguments)
    for start, count in [(-1, 1), (0, 0)]:
        with pytest.raises(ValueError, match="cannot read"):
            stream_of(Numbers()).read(start, count)


@pytest.mark.parametrize("prefetch", [False, True])
def test_an_error_of_the_source_surfaces_in_read_and_the_next_read_tries_again(prefetch):
    class Flaky(Numbers):
        def blocks(self, pieces=None):
            for block in super().blocks(pieces):
                if self.passes == 1 and self.images_read > 40:
                    raise OSError("the disk is gone")
                yield block

    whole = stream_of(Numbers(100), window=12).read(0, 50)[1]
    with stream_of(Flaky(100), window=12, prefetch=prefetch) as stream:
        np.testing.assert_array_equal(stream.read(0, 24)[1], whole[:24])
        if prefetch:
            time.sleep(0.1)  # the thread meets the error before the reader asks
        np.testing.assert_array_equal(stream.read(24, 4)[1], whole[24:28])
        with pytest.raises(OSError, match="the disk is gone"):
            stream.read(28, 22)
        np.testing.assert_array_equal(stream.read(28, 22)[1], whole[28:])


@pytest.mark.parametrize("lanes", [1, 4])
def test_for_a_window_without_a_good_image_another_one_of_its_lane_serves(lanes):
    class Damaged(Numbers):
        """Its second shard cannot be read."""

        def read(self, piece):
            for block in super().read(piece):
                yield block | {"fault": np.where(block["label"] // 10 == 1, "is damaged", "").astype(object)}

    source = Damaged(400, block=10)
    order = {"window": 10 * lanes, "batch_size": 8, "lanes": lanes, "max_bad_fraction": 0.1}
    stream = stream_of(source, **order)
    labels = stream.read(0, 400)[1]
    assert sorted(stream.faults) == list(range(10, 20))
    assert not (labels // 10 == 1).any()
    assert set(labels) == set(range(400)) - set(range(10, 20))
    np.testing.assert_array_equal(stream_of(source, **order).read(200, 200)[1], labels[200:])


def test_a_source_that_fails_when_it_is_closed_holds_nobody_up():
    def blocks(pieces):
        try:
            yield from Numbers(100).blocks(pieces)
        finally:
            raise OSError("cannot be closed")

    with ImageStream(blocks, [3] * 33 + [1], 0, 10, prefetch=True) as stream:
        stream.read(0, 10)
        np.testing.assert_array_equal(
            stream.read(70, 10)[1], stream_of(Numbers(100), window=10).read(70, 10)[1]
        )


# -- the thread --------------------------------------------------------------------------------------------


def image_threads():
    return [thread for thread in threading.enumerate() if thread.name == "raysid-images"]


def test_close_stops_the_thread_and_the_source():
    ended = threading.Event()

    class Watched(Numbers):
        def blocks(self, pieces=None):
            try:
                yield from super().blocks(pieces)
            finally:
                ended.set()

    stream = stream_of(Watched(), window=4, prefetch=True)
    stream.read(0, 1)
    assert len(image_threads()) == 1
    stream.close()
    stream.close()
    assert not image_threads() and ended.is_set()
    with pytest.raises(RuntimeError, match="closed"):
        stream.read(1, 1)


def test_close_does_not_wait_for_a_long_read():
    """The thread stops after the block that it is reading, not at the end of the window."""
    ahead = threading.Event()

    class Slow(Numbers):
        def blocks(self, pieces=None):
            for block in super().blocks(pieces):
                if self.images_read > 1000:
                    ahead.set()
                    time.sleep(0.001)
                yield block

    source = Slow(10_000, block=1)
    stream = stream_of(source, window=1000, prefetch=True)
    stream.read(0, 10)
    assert ahead.wait(10)
    stream.close()
    assert source.images_read < 1500 and not image_threads()


def test_a_stream_that_is_dropped_leaves_no_thread():
    stream = stream_of(Numbers(), prefetch=True)
    stream.read(0, 1)
    del stream
    wait_until(lambda: not image_threads(), 10, "the end of the thread")


def test_a_blocked_source_does_not_hold_up_the_end_of_the_process():
    code = """
        import threading, numpy as np
        from raysid.data import ImageStream
        def blocks(pieces):
            yield {"image": np.zeros((2, 1, 1, 1), np.uint8), "label": np.zeros(2, int)}
            threading.Event().wait()
        ImageStream(blocks, [4], 0, 2, prefetch=True).read(0, 2)
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=30)


# -- Ray Data ----------------------------------------------------------------------------------------------


def reader_actors(num_readers: int):
    """Start actors of a quarter of a CPU each, the first of which reads; return once all run."""
    import ray

    @ray.remote(num_cpus=0.25)
    class Reader:
        def read(self, read_blocks, shard_sizes, window, addresses, prefetch):
            with ImageStream(read_blocks, shard_sizes, 5, window, prefetch=prefetch) as stream:
                return [stream.read(start, count) for start, count in addresses]

        def up(self):
            return True

    readers = [Reader.remote() for _ in range(num_readers)]  # type: ignore[attr-defined]
    ray.get([reader.up.remote() for reader in readers])
    return readers


@pytest.mark.parametrize(("window", "prefetch"), [(DIGITS, False), (500, True), (500, False)])
def test_an_actor_reads_the_same_through_ray_data(ray_cluster, window, prefetch):
    import ray

    source = DigitsSource(images_per_shard=300)
    addresses = [(0, 100), (100, 900), (1000, 1000), (1500, 100), (300, 10)]
    readers = reader_actors(3)  # a learner's machine: three roles of a quarter of a CPU each
    read = readers[0].read.remote(ray_blocks(source), source.shard_sizes, window, addresses, prefetch)
    local = ImageStream(source.blocks, source.shard_sizes, 5, window)
    for (start, count), (images, labels) in zip(addresses, ray.get(read, timeout=60), strict=True):
        expected_images, expected_labels = local.read(start, count)
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


def test_slow_shards_do_not_change_the_order(ray_cluster, tmp_path):
    class FirstIsLast(DigitsSource):
        """Shard 0 is read after shard 1, which changes the order unless `preserve_order` is set."""

        def read(self, piece):
            index = piece.shard
            patience = time.monotonic() + 30
            while index == 0 and not (tmp_path / "1").exists():
                assert time.monotonic() < patience, "shard 1 is in the same read task"
                time.sleep(0.01)
            time.sleep(0.5 if index == 0 else 0)
            yield from super().read(piece)
            (tmp_path / str(index)).touch()

    stream = ImageStream(ray_blocks(FirstIsLast(1000)), FirstIsLast(1000).shard_sizes, 5, DIGITS)
    expected = stream_of(DigitsSource(), 5, DIGITS)
    np.testing.assert_array_equal(stream.read(0, DIGITS)[0], expected.read(0, DIGITS)[0])


def test_an_error_in_a_read_task_is_one_line(ray_cluster):
    class Broken(DigitsSource):
        def read(self, piece):
            if piece.shard == 3:
                raise OSError("no such bucket: gs://nowhere\nwith\ndetails")
            yield from super().read(piece)

    stream = ImageStream(ray_blocks(Broken(300)), Broken(300).shard_sizes, 5, DIGITS)
    with pytest.raises(RuntimeError) as raised:
        stream.read(0, 10)
    assert str(raised.value) == "reading the real images failed: OSError: no such bucket: gs://nowhere"


ONE_CPU = """
    import ray
    from raysid.data import ImageStream, ray_blocks
    from raysid.data.scikit_learn import DigitsSource

    @ray.remote(num_cpus=0.25)
    class Reader:
        def read(self, read_blocks, sizes):
            with ImageStream(read_blocks, sizes, 0, 500) as stream:
                return [stream.read(start, 100)[1].sum() for start in range(0, 4000, 100)]

        def up(self):
            pass

    ray.init(address="local", num_cpus=1, include_dashboard=False)
    readers = [Reader.remote() for _ in range(3)]
    ray.get([reader.up.remote() for reader in readers])
    source = DigitsSource(images_per_shard=300)
    sums = ray.get(readers[0].read.remote(ray_blocks(source), source.shard_sizes), timeout=60)
    stream = ImageStream(source.blocks, source.shard_sizes, 0, 500)
    assert sums == [stream.read(start, 100)[1].sum() for start in range(0, 4000, 100)]
    ray.shutdown()
"""


@pytest.mark.slow
def test_one_cpu_shared_with_three_roles_is_enough_and_ray_data_is_quiet():
    """A quarter of a CPU is left for read tasks. In a new process, because this one has joined a cluster."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ONE_CPU)], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert "Dataset" not in ran.stdout + ran.stderr and "rogress" not in ran.stdout + ran.stderr
