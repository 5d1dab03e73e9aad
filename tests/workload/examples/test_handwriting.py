"""Handwriting: the digits that ship, MNIST's own files, and what is augmented."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from batchcal.core.errors import UsageError
from batchcal.workload.examples.handwriting import SHIPPED, Digits, task
from batchcal.workload.examples.idx import read_idx
from batchcal.workload.task import Task

CPU = torch.device("cpu")


def images(task: Task, index: int) -> Tensor:
    sample = task.train_data[index]
    assert isinstance(sample, tuple)
    image = sample[0]
    assert isinstance(image, Tensor)
    return image


def test_the_shipped_digits_are_complete_and_split_evenly() -> None:
    counts = []
    for part in ("train", "eval"):
        pixels, labels = read_idx(SHIPPED / f"{part}-images-idx3-ubyte.gz"), read_idx(SHIPPED / f"{part}-labels-idx1-ubyte.gz")
        assert pixels.shape == (len(labels), 28, 28)
        assert pixels.max() == 255
        counts.append(torch.bincount(labels.long(), minlength=10))
    # The numbers of each digit that the UCI repository gives for this part of its data.
    assert (counts[0] + counts[1]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.equal(counts[1], ((counts[0] + counts[1]) * 0.2).round().long())
    source = (SHIPPED / "SOURCE.txt").read_text()
    assert all(word in source for word in ("UCI", "Alpaydin", "Kaynak", "CC BY 4.0", "1,797"))


def test_repeated_digits_have_a_different_image_for_every_index() -> None:
    made = task(CPU, channels=8, repeat_to=60_000)
    assert isinstance(made.train_data, Digits)
    assert len(made.train_data) == 60_000
    held = 1438
    assert made.train_data[3][1] == made.train_data[3 + held][1]
    assert not torch.equal(images(made, 3), images(made, 3 + held))
    assert images(made, 3).shape == (1, 28, 28)
    assert 0 <= images(made, 3).min() <= images(made, 3).max() <= 1


def test_images_are_unchanged_without_augmentation() -> None:
    made = task(CPU, channels=8, repeat_to=0, augment=False)
    pixels = read_idx(SHIPPED / "train-images-idx3-ubyte.gz")
    assert isinstance(made.train_data, Digits)
    assert len(made.train_data) == len(pixels)
    torch.testing.assert_close(images(made, 5), pixels[5:6] / 255)
    assert made.label_of is not None
    assert made.label_of(made.train_data[5]) == made.train_data[5][1]


def mnist(folder: Path, *, zipped: bool, side: int = 28, labels: int = 5) -> None:
    for part in ("train", "t10k"):
        parts = {
            f"{part}-images-idx3-ubyte": struct.pack(">HBB3I", 0, 8, 3, 5, side, side) + bytes(5 * side * side),
            f"{part}-labels-idx1-ubyte": struct.pack(">HBBI", 0, 8, 1, labels) + bytes(range(labels)),
        }
        for name, data in parts.items():
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_original_mnist_files_are_read(tmp_path: Path, zipped: bool) -> None:
    mnist(tmp_path, zipped=zipped)
    made = task(CPU, data=str(tmp_path), channels=8, repeat_to=0)
    assert isinstance(made.train_data, Digits)
    assert isinstance(made.eval_data, Digits)
    assert [made.train_data[index][1] for index in range(len(made.train_data))] == [0, 1, 2, 3, 4]
    assert len(made.eval_data) == 5


def test_a_relative_data_folder_works_after_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist(tmp_path, zipped=True)
    monkeypatch.chdir(tmp_path.parent)
    made = task(CPU, data=tmp_path.name, channels=8)
    monkeypatch.chdir("/")  # as a worker may
    assert images(made, 0).shape == (1, 28, 28)


@pytest.mark.parametrize(("side", "labels"), [(27, 5), (28, 4), (28, 0)])
def test_image_and_label_files_that_do_not_match_are_rejected(tmp_path: Path, side: int, labels: int) -> None:
    mnist(tmp_path, zipped=False, side=side, labels=labels)
    with pytest.raises(UsageError, match="do not belong together"):
        task(CPU, data=str(tmp_path))


def test_a_folder_without_mnist_files_and_invalid_arguments_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not contain the train part"):
        task(CPU, data=str(tmp_path))
    mnist(tmp_path, zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError, match="does not contain the eval part") as caught:
        task(CPU, data=str(tmp_path))
    assert "t10k" in caught.value.known
    with pytest.raises(UsageError, match="not a multiple of 4"):
        task(CPU, channels=6)
    with pytest.raises(UsageError, match="below 0"):
        task(CPU, repeat_to=-1)
