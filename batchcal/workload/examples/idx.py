"""The IDX format of MNIST, gzipped or not. Strict: any other file is refused, with an error that names the problem.

A file is 0, 0, a type code, the number of dimensions, each dimension as a big-endian uint32, then the values, big-endian, and
nothing more (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import struct
import sys
import zlib
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor

from batchcal.core.errors import UsageError
from batchcal.core.units import count_of

_TYPES: Final[dict[int, torch.dtype]] = {
    0x08: torch.uint8,
    0x09: torch.int8,
    0x0B: torch.int16,
    0x0C: torch.int32,
    0x0D: torch.float32,
    0x0E: torch.float64,
}
_MAX_DIMENSIONS: Final = 8
_PIECE: Final = 1 << 20
"""Size of a read, bytes. A wrong header cannot cause a larger allocation."""


def read_idx(path: Path) -> Tensor:
    """All values of the file, in the shape and type that its header names.

    Raises:
        UsageError: the file does not exist, is not an IDX file, is truncated, or has data after its end.
    """
    with _open(path) as file:
        try:
            shape, dtype = _header(file, path)
            expected = math.prod(shape) * dtype.itemsize
            data = bytearray()
            while len(data) <= expected and (piece := file.read(min(_PIECE, expected + 1 - len(data)))):
                data += piece
        except (OSError, EOFError, zlib.error) as error:
            raise _refused(path, f"it cannot be read to its end: {error}") from None
    if len(data) != expected:
        actual = count_of(len(data), "byte") if len(data) < expected else "more"
        raise _refused(path, f"its header announces {count_of(expected, 'byte')} of values ({_text(shape)}), but it has {actual}")
    if not expected:
        return torch.zeros(shape, dtype=dtype)
    values = torch.frombuffer(data, dtype=torch.uint8).view(-1, dtype.itemsize)
    if dtype.itemsize > 1 and sys.byteorder == "little":
        values = values.flip(1).contiguous()
    return values.view(dtype).view(shape)


def shape_of_idx(path: Path) -> tuple[int, ...]:
    """The dimensions that the file's header names; the values are not read.

    Raises:
        UsageError: the file does not exist, or does not begin like an IDX file.
    """
    with _open(path) as file:
        try:
            return _header(file, path)[0]
        except (OSError, EOFError, zlib.error) as error:
            raise _refused(path, f"its header cannot be read: {error}") from None


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        return gzip.open(path, "rb") if zipped else path.open("rb")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}",
            known="IDX is the file format of MNIST, for example train-images-idx3-ubyte, gzipped or not",
            try_="data = 'path/to/MNIST/raw', the folder with these files",
        ) from None


def _header(file: BinaryIO | gzip.GzipFile, path: Path) -> tuple[tuple[int, ...], torch.dtype]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise _refused(
            path,
            f"an IDX file has at least four bytes and begins with two zeros; this file begins with {start.hex(' ') or 'nothing'}",
        )
    dtype = _TYPES.get(start[2])
    if dtype is None:
        raise _refused(path, f"its type code is {start[2]:#04x}; valid codes are {', '.join(f'{code:#04x}' for code in _TYPES)}")
    dimensions = start[3]
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _refused(path, f"its header has {count_of(dimensions, 'dimension')}; 1 to {_MAX_DIMENSIONS} are supported")
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise _refused(path, f"it ends within its header, which has {count_of(dimensions, 'dimension')}")
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", sizes)
    return shape, dtype


def _refused(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is not a complete IDX file", known=why, try_="download or unpack it again")


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
