"""The content of a sample as one short text, equal in every process that reads the same sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Final

import torch
from torch import Tensor

MOST_OBJECTS: Final = 4096
"""Largest number of objects of one sample that are compared; further objects count as equal."""


def digest_of(sample: object) -> str:
    """A hash of every tensor, array, text and number in `sample`, through any nest, and through the attributes of objects."""
    digest = _Digest()
    digest.add(sample)
    return digest.hash.hexdigest()


class _Digest:
    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=12)
        self._visited: dict[int, object] = {}

    def add(self, value: object) -> None:
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, str | bytes | bytearray | int | float | complex | Enum | type(None)):
            self._text(f"{type(value).__name__}:{value!r}")
        elif isinstance(value, Mapping):
            self._text(f"mapping:{len(value)}")
            for key, child in value.items():
                self.add(key)
                self.add(child)
        elif isinstance(value, list | tuple):
            self._text(f"sequence:{len(value)}")
            for child in value:
                self.add(child)
        elif isinstance(value, set | frozenset):
            self._text(f"set:{sorted(map(digest_of, value))}")  # its order differs from process to process
        else:
            self._object(value)

    def _tensor(self, value: Tensor) -> None:
        self._text(f"tensor:{value.dtype}:{tuple(value.shape)}:{value.layout}")
        plain = value.detach()
        if plain.layout is not torch.strided:
            plain = plain.to_dense()
        if plain.is_quantized:
            plain = plain.int_repr()
        if plain.numel():
            self.hash.update(plain.cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy().tobytes())

    def _object(self, value: object) -> None:
        kind = type(value)
        self._text(f"{kind.__module__}.{kind.__qualname__}")
        if id(value) in self._visited or len(self._visited) >= MOST_OBJECTS:
            return
        self._visited[id(value)] = value
        content: object = getattr(value, "tobytes", None)  # of an array, or of an image
        if callable(content) and not getattr(getattr(value, "dtype", None), "hasobject", False):
            self._text(f"{getattr(value, 'dtype', '')}:{getattr(value, 'shape', getattr(value, 'size', ''))}")
            data: object = content()
            if isinstance(data, bytes):
                self.hash.update(data)
            return
        if is_dataclass(value) and not isinstance(value, type):
            for field in fields(value):
                self.add(getattr(value, field.name, None))
            return
        inside: object = getattr(value, "__dict__", None)
        if isinstance(inside, Mapping) and not isinstance(value, type) and not callable(value):
            self.add(dict(inside))

    def _text(self, text: str) -> None:
        self.hash.update(text.encode("utf-8", "backslashreplace") + b"\0")
