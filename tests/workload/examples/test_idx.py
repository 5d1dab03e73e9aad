"""The reader of MNIST's format takes what is exactly that, and says what is wrong with everything else."""

from __future__ import annotations

import gzip
import math
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchcal.core.errors import UsageError
from batchcal.workload.examples.idx import read_idx, shape_of_idx

CODES = {0x08: "B", 0x09: "b", 0x0B: "h", 0x0C: "i", 0x0D: "f", 0x0E: "d"}


def idx(code: int, shape: tuple[int, ...], values: list[int]) -> bytes:
    header = struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape)
    return header + struct.pack(f">{len(values)}{CODES[code]}", *values)


GOOD = idx(0x08, (2, 3), [1, 2, 3, 4, 5, 255])


@given(code=st.sampled_from(sorted(CODES)), shape=st.lists(st.integers(0, 4), min_size=1, max_size=4), zipped=st.booleans())
def test_every_idx_type_and_shape_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, code: int, shape: list[int], zipped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "values-idx"
    values = [number % 120 for number in range(math.prod(shape))]
    data = idx(code, tuple(shape), values)
    path.write_bytes(gzip.compress(data) if zipped else data)
    read = read_idx(path)
    assert read.shape == tuple(shape) == shape_of_idx(path)
    assert read.flatten().tolist() == values
    assert read.element_size() == struct.calcsize(CODES[code])


def test_idx_values_of_every_type_keep_their_sign_and_order(tmp_path: Path) -> None:
    for code, values in ((0x08, [0, 255]), (0x09, [-128, 127]), (0x0B, [-2, 258]), (0x0C, [-2, 70_000]), (0x0D, [-2, 3])):
        (tmp_path / "x").write_bytes(idx(code, (2,), values))
        assert read_idx(tmp_path / "x").tolist() == values


@pytest.mark.parametrize(
    ("data", "known"),
    [
        (b"", "with nothing"),
        (b"\0\0\x08", "with 00 00 08"),
        (b"<!DOCTYPE html>", "with 3c 21 44 4f"),
        (b"\0\0\x07\x01\0\0\0\0", "type code is 0x07"),
        (b"\0\0\x08\x00", "0 dimensions"),
        (b"\0\0\x08\xff", "255 dimensions"),
        (GOOD[:10], "ends within its header, which has 2 dimensions"),
        (GOOD[:-1], r"announces 6 bytes of values \(2 x 3\), but it has 5 bytes"),
        (GOOD + b"\0", "it has more"),
        (idx(0x0C, (2,), [1, 2])[:-1], "announces 8 bytes"),
        (gzip.compress(GOOD, mtime=0)[:-9], "cannot be read"),
        (gzip.compress(GOOD, mtime=0)[:12] + b"\xff" * 20, "cannot be read|with 00"),
        (gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8, "CRC"),
        (b"\x1f\x8b", "cannot be read"),
        (gzip.compress(gzip.compress(GOOD, mtime=0), mtime=0), "with 1f 8b"),
    ],
)
def test_an_invalid_idx_file_is_rejected_with_the_reason(tmp_path: Path, data: bytes, known: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is not a complete IDX file") as caught:
        read_idx(path)
    assert caught.match(known)
    assert caught.value.try_


def test_an_unreadable_idx_header_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(UsageError, match="header cannot be read"):
        shape_of_idx(tmp_path / "x")


@given(st.binary(max_size=200))
def test_random_bytes_are_read_as_idx_or_raise_usage_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage-idx"
    for content in (data, b"\0\0" + data, b"\x1f\x8b" + data, gzip.compress(data)):
        path.write_bytes(content)
        try:
            read = read_idx(path)
        except UsageError:
            continue
        assert read.ndim >= 1


def test_an_idx_header_with_excessive_sizes_allocates_no_memory(tmp_path: Path) -> None:
    header = struct.pack(">HBB3I", 0, 0x0E, 3, 1 << 31, 1 << 31, 1 << 31)
    for data in (header, gzip.compress(header)):
        (tmp_path / "x").write_bytes(data)
        tracemalloc.start()
        with pytest.raises(UsageError, match="it has 0 bytes"):
            read_idx(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(GOOD + bytes(64 << 20)))
    tracemalloc.start()
    with pytest.raises(UsageError, match="it has more"):
        read_idx(tmp_path / "x")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_missing_idx_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            read_idx(path)
        assert "MNIST" in caught.value.known


def test_idx_values_are_writable(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(GOOD)
    values = read_idx(tmp_path / "x")
    values += 1
    assert values.dtype is torch.uint8
