"""The windows that a reader of the stream is in, and those ahead of it."""

from __future__ import annotations

import threading
from contextlib import suppress

from raysid.data.faults import check_faults
from raysid.data.order import Order, Window
from raysid.data.windows import Loaded, Passes, ReadBlocks
from raysid.errors import RunFailed, UserError

CLOSE_SECONDS = 5.0


class Reader:
    """Holds windows from when they are read until they are behind.

    They are read in the order in which they are needed. Who asks for one elsewhere, back or further on, has the reading
    begin anew there.

    Args:
        read_blocks: reads pieces of the source, the same images each time.
        order: which images are in which window.
        lanes: of the order that are read; the lane of any other window that is asked for is added.
        max_bad_fraction: part of the set's images that may be bad.
        ahead: read on in a thread, as many images again as the lanes' windows hold; otherwise in `load`.

    Attributes:
        faults: what is wrong with each bad image met so far, by its place in the source's list.
    """

    def __init__(
        self, read_blocks: ReadBlocks, order: Order, lanes: set[int], max_bad_fraction: float, ahead: bool
    ) -> None:
        self.read_blocks = read_blocks
        self.order = order
        self.lanes = lanes
        self.max_bad_fraction = max_bad_fraction
        self.faults: dict[int, str] = {}
        self._news = threading.Condition()  # guards what follows
        self._loaded: dict[Window, Loaded] = {}
        self._floor = 0  # nothing before this position is kept, or read
        self._passes: Passes | None = None
        self._failed: tuple[Window, BaseException] | None = None  # on the way to which window, and how
        self._went_back = False  # since the pass began
        self._wanted: Window | None = None  # somebody waits for it
        self._stopping = False
        self._thread: threading.Thread | None = None
        if ahead:
            self._thread = threading.Thread(target=self._read_on, name="raysid-images", daemon=True)
            self._thread.start()

    def load(self, window: Window, floor: int) -> Loaded:
        """A window; read, if it is not held.

        Args:
            floor: the position before which nothing is needed any more. (To go back is to read again.)

        Raises:
            RunFailed: the source cannot be read any more, or too many images are bad.
            RuntimeError: closed meanwhile. Whatever `read_blocks` raises comes through; the next call reads again.
        """
        with self._news:
            self._move_to(floor)
            if window in self._loaded:
                return self._loaded[window]
            self._raise_error(window)
            if not self._comes(window):
                self.lanes.add(window.lane)
                self._passes_from(floor)
            self._wanted = window
            self._news.notify_all()
            try:
                while window not in self._loaded:
                    self._raise_error(window)
                    if self._stopping:
                        raise RuntimeError("the image stream was closed during a read")
                    if self._passes is None:  # it ended with what nobody waits for any more
                        self._passes_from(floor)
                    if self._thread is not None:
                        self._news.wait()
                    else:
                        assert self._passes is not None
                        self._read_next(self._passes)
            finally:
                self._wanted = None
            return self._loaded[window]

    def loaded_until(self, position: int) -> int | None:
        """Up to where, from a position on, all images of the lanes are held; None where there is no end to that."""
        with self._news:
            for window in self.order.windows_from(position, self.lanes):
                if window not in self._loaded:
                    return max(position, window.begin)
        return None

    def stop(self) -> None:
        """Have the reading end after the block that is under way."""
        self._stopping = True
        if (passes := self._passes) is not None:  # before the lock, which a read without a thread holds
            passes.abandoned = True
        with self._news:
            self._news.notify_all()

    def close(self) -> None:
        """Stop, and wait for it a few seconds at most."""
        self.stop()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        elif self._passes is not None:
            _close(self._passes)

    def _move_to(self, floor: int) -> None:
        if floor == self._floor:
            return
        self._went_back = self._went_back or floor < self._floor
        self._floor = floor
        if not self.order.held:
            for window in [window for window in self._loaded if window.end <= floor]:
                del self._loaded[window]
        self._news.notify_all()

    def _comes(self, window: Window) -> bool:
        """Whether reading on comes to a window, through nothing but what is needed."""
        following = self._passes.following if self._passes is not None else None
        return (
            following is not None
            and not self._went_back  # the pass may have begun after it, or have left it out
            and window.lane in self.lanes
            and self._is_before(following, window)
        )

    def _is_before(self, other: Window, window: Window) -> bool:
        """Whether a window comes before another one, or is it, and is still needed."""
        return other.begin <= window.begin and (other.end > self._floor or self.order.held)

    def _passes_from(self, floor: int) -> None:
        before = self._passes
        if before is not None:
            before.abandoned = True
            if self._thread is None:
                _close(before)  # otherwise the thread does, since its blocks are the thread's
        if not self.order.held:  # what is ahead of another place may be far from this one
            soon = floor + self.order.batch_size
            self._loaded = {window: loaded for window, loaded in self._loaded.items() if window.begin < soon}
        held = set(self._loaded)
        coming = self.order.windows_from(floor, sorted(self.lanes))
        self._passes = Passes(
            self.read_blocks, self.order, (window for window in coming if window not in held)
        )
        self._went_back = False
        self._news.notify_all()

    def _raise_error(self, window: Window) -> None:
        """Raise what went wrong on the way to a window."""
        failed, self._failed = self._failed, None
        if failed is not None and self._is_before(failed[0], window):
            raise failed[1]

    def _read_on(self) -> None:
        """The thread: what is needed next, as long as there is room for it or somebody waits."""
        passes: Passes | None = None
        while True:
            with self._news:
                self._news.wait_for(lambda: self._stopping or self._has_room())
                before, passes = passes, self._passes
                stopping = self._stopping
            if before is not None and (stopping or before is not passes):
                _close(before)
            if stopping:
                return
            assert passes is not None
            self._read_next(passes)

    def _has_room(self) -> bool:
        if self._passes is None or self._passes.following is None:
            return False
        if self._wanted is not None and self._wanted not in self._loaded:
            return True
        soon = self._floor + self.order.batch_size
        ahead = sum(window.size for window in self._loaded if window.begin >= soon)
        return ahead < len(self.lanes) * self.order.window

    def _read_next(self, passes: Passes) -> None:
        """Read a window, or note what went wrong: that is for whoever needs it."""
        window = passes.following
        assert window is not None  # whoever calls has seen that something is to be read
        loaded: Loaded | None = None
        error: BaseException | None = None
        faults = self.faults
        try:
            loaded = passes.read()
            faults = faults | loaded.faults  # another one: who reads it does not wait
            check_faults(faults, self.max_bad_fraction, self.order.num_images)
        except UserError as refused:  # it was well when the run began
            error = RunFailed(f"{refused}; run the same command to resume")
            error.__cause__ = refused
        except BaseException as raised:
            error = raised
        if error is not None:
            _close(passes)
        with self._news:
            if self._passes is passes:
                self.faults = faults
                if error is not None:
                    self._passes, self._failed = None, (window, error)
                elif loaded is not None:
                    self._loaded[window] = loaded
                    passes.advance()
                self._news.notify_all()


def _close(passes: Passes) -> None:
    """Of what is not read on nobody wants to know how its end went."""
    with suppress(Exception):
        passes.close()
