"""The digits, as a source and through Ray Data."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from raysid.data import open_source, to_unit
from raysid.data.ray_data import shard_dataset
from raysid.data.scikit_learn import DigitsSource
from raysid.errors import UserError


def joined(blocks):
    """The images and labels of all blocks, concatenated."""
    blocks = list(blocks)
    return np.concatenate([b["image"] for b in blocks]), np.concatenate([b["label"] for b in blocks])


@pytest.mark.parametrize("images_per_shard", [1, 100, 1024, 5000])
def test_blocks_are_sklearns_digits_however_they_are_cut(images_per_shard):
    source = DigitsSource(images_per_shard)
    images, labels = joined(source.blocks())
    digits = load_digits()
    assert images.dtype == np.uint8 and images.shape == (source.num_images, *source.image_shape)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(images[:, 0], digits.images)
    np.testing.assert_array_equal(labels, digits.target)


def test_label_counts():
    source = DigitsSource()
    assert source.label_counts.dtype == np.int64 and source.label_counts.shape == (source.num_classes,)
    assert source.label_counts.sum() == source.num_images
    assert source.label_counts[8] == 174


def test_unit_range_of_digits():
    images, _ = joined(DigitsSource().blocks())
    unit = to_unit(images, DigitsSource.pixel_max)
    assert unit.dtype == np.float32 and unit.min() == -1 and unit.max() == 1
    np.testing.assert_array_equal(unit, (images / 8 - 1).astype(np.float32))


def test_unit_range_of_8_bit_images_is_edms():
    pixels = np.arange(256, dtype=np.uint8)
    unit = to_unit(pixels, 255)
    assert unit[0] == -1 and unit[-1] == 1
    np.testing.assert_array_equal(unit, pixels.astype(np.float32) / np.float32(127.5) - np.float32(1))


def test_a_source_pickles_small_even_after_reading():
    source = DigitsSource()
    list(source.blocks())
    assert len(pickle.dumps(source)) < 1000


def test_shards_of_no_images():
    with pytest.raises(ValueError, match="images_per_shard"):
        DigitsSource(0)


def test_open_source():
    assert isinstance(open_source("digits"), DigitsSource)
    with pytest.raises(
        UserError,
        match=r"^data.source: unknown source of real images 'digit'; known: digits, patches, or the path",
    ):
        open_source("digit")


def test_importing_the_package_imports_neither_ray_nor_sklearn():
    code = "import sys, raysid.data; print([m for m in ('ray', 'sklearn') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_ray_data_has_the_same_rows_in_the_same_order(ray_cluster):
    source = DigitsSource(images_per_shard=100)
    images, labels = joined(shard_dataset(source).iter_batches(batch_size=256, batch_format="numpy"))
    expected_images, expected_labels = joined(source.blocks())
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(labels, expected_labels)
    assert images.dtype == np.uint8 and labels.dtype == np.int64


def test_the_settings_of_the_users_own_datasets_stay(ray_cluster):
    import ray.data

    def settings():
        context = ray.data.DataContext.get_current()
        return context.execution_options.preserve_order, context.enable_progress_bars

    before = settings()
    dataset = shard_dataset(DigitsSource())
    assert dataset.context.execution_options.preserve_order and not dataset.context.enable_progress_bars
    assert settings() == before
