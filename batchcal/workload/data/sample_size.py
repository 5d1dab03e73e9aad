"""Size of a sample or batch of any kind: what it costs in a batch, and its bytes."""

from __future__ import annotations

import enum
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from batchcal.core.errors import UserCodeError
from batchcal.core.units import count_of
from batchcal.workload.data.pickled import pickled_bytes

SizeOf = Callable[..., float] | Sequence[float] | None

OBJECT_DEPTH: Final = 4
"""Objects of own classes are opened so many levels deep: a graph batch of torch_geometric has its tensors three levels down."""
COLLATED_ALONE: Final = 16
"""Number of samples that are collated one by one, to check whether their own elements give the same order."""
ALIKE: Final = 1.05
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})
"""Types that are not containers and do not hold tensors."""
_NO_DATA: Final = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    enum.Enum,
    nn.Module,
    Dataset,
    torch.device,
    torch.dtype,
    torch.Generator,
)
"""Not a part of the sample, whatever they hold: a sample may refer to its dataset or its tokenizer."""


class Weight(NamedTuple):
    """Values that a sample holds."""

    elements: int
    complete: bool
    """False: an object in it shows neither tensors nor a size, and does not pickle."""


def weight(value: object) -> Weight:
    """The values of a sample in tensors, arrays, texts, attributes of objects, and any nest of them."""
    total, complete = 0, True
    for leaf in _leaves(value):
        count = _leaf_elements(leaf)
        complete = complete and count is not None
        total += 1 if count is None else count
    return Weight(total, complete)


def elements(value: object) -> int:
    """Number of values of a sample; see `weight`."""
    return weight(value).elements


def nest_bytes(value: object) -> int:
    """Bytes of the tensors and arrays in any nest, attributes of objects included. Runs on every batch of a training: names and
    counts by row are passed over at once."""
    return sum(_tensor_bytes(item) if isinstance(item, Tensor) else item for item in _tensors_and_bytes(value))


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in any nest, attributes of objects included; in the same order for nests of one structure."""
    return (item for item in _tensors_and_bytes(value) if isinstance(item, Tensor))


def _tensors_and_bytes(value: object) -> Iterator[Tensor | int]:
    """Tensors; of arrays and the like their bytes."""
    rest: list[tuple[object, int]] = [(value, 0)]
    visited: set[int] = set()
    while rest:
        item, depth = rest.pop()
        if isinstance(item, Tensor):
            yield item
        elif (inside := _children(item)) is not None:
            rest.extend((child, depth) for child in inside if type(child) not in _PLAIN)
        elif isinstance(size := getattr(item, "nbytes", None), int):
            yield size
        elif id(item) not in visited and depth < OBJECT_DEPTH:
            visited.add(id(item))
            rest.extend((child, depth + 1) for child in _attributes(item) if type(child) not in _PLAIN)


def _tensor_bytes(tensor: Tensor) -> int:
    """A sparse tensor has no bytes of its own, but those of its parts."""
    if tensor.layout is torch.strided or tensor.layout is torch.jagged:
        return tensor.nbytes
    return sum(part.nbytes for part in _parts(tensor))


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()


def _leaf_elements(leaf: object) -> int | None:
    """None: unknown."""
    if isinstance(leaf, Tensor):
        sparse = leaf.layout is not torch.strided and leaf.layout is not torch.jagged
        return sum(part.numel() for part in _parts(leaf)) if sparse else leaf.numel()
    if isinstance(leaf, str | bytes | bytearray):
        return len(leaf)
    if type(leaf) in _PLAIN:
        return 1
    if isinstance(leaf, _NO_DATA):
        return 0
    size: object = getattr(leaf, "size", None)
    if isinstance(size, tuple):  # of a PIL image: width, height
        width, height = (*size, 1, 1)[:2]
        return width * height if isinstance(width, int) and isinstance(height, int) else 1
    if isinstance(size, int):
        return size
    return pickled_bytes(leaf).size


def _leaves(value: object) -> Iterator[object]:
    rest: list[tuple[object, int]] = [(value, 0)]
    visited: set[int] = set()
    while rest:
        item, depth = rest.pop()
        if item is None:
            continue
        inside = _children(item)
        if inside is not None:
            rest.extend((child, depth) for child in inside)
            continue
        if not _has_a_size(item):
            if id(item) in visited:
                continue
            visited.add(id(item))
            attributes = _attributes(item) if depth < OBJECT_DEPTH else []
            if attributes:
                rest.extend((child, depth + 1) for child in attributes)
                continue
        yield item


def _has_a_size(value: object) -> bool:
    """True for a leaf that has a size."""
    if isinstance(value, Tensor | str | bytes | bytearray) or type(value) in _PLAIN or isinstance(value, _NO_DATA):
        return True
    return isinstance(getattr(value, "size", None), int | tuple)


def _attributes(value: object) -> list[object]:
    """Attributes of an object of a user class, from its dictionary and its slots."""
    if isinstance(value, _NO_DATA):
        return []
    inside = list(vars(value).values()) if hasattr(value, "__dict__") else []
    for kind in type(value).__mro__:
        slots: object = vars(kind).get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        if isinstance(names, Iterable):
            inside.extend(getattr(value, name) for name in names if isinstance(name, str) and hasattr(value, name))
    return inside


def _children(value: object) -> Iterable[object] | None:
    """Items of a container. None: not a container."""
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return None
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    return None


class Weigher:
    """The cost of samples without `size_of`: their own elements, or the elements of the batch that collate makes of each alone.

    The second is used if the two orders differ for the first samples: paths, indices and texts become tensors only in collate.
    """

    def __init__(self, collate: Callable[..., object] | None) -> None:
        """`collate` None: torch's own, which changes no size."""
        self._collate = collate
        self._own_costs: list[float] = []
        self._collated_costs: list[float] = []
        self.unknown = False
        """A sample shows no size, collated or not."""

    def cost(self, sample: object) -> float:
        own = weight(sample)
        # None could not be read, and the collate function leaves it out.
        collated = self._collated(sample) if self._collate is not None and sample is not None else None
        if not own.complete and (collated is None or not nest_bytes(collated)) and not nest_bytes(sample):
            self.unknown = True
        if self._collate is None:
            return float(own.elements)
        cost = float(own.elements if collated is None else elements(collated))
        self._own_costs.append(float(own.elements))
        self._collated_costs.append(cost)
        if len(self._own_costs) == COLLATED_ALONE and self._alike():
            self._collate = None
        return cost

    def costs(self, costs: Sequence[float]) -> list[float]:
        """`costs` of the samples in order, all in one unit."""
        if self._collate is None and self._own_costs:
            return [*self._own_costs, *costs[len(self._own_costs) :]]
        return list(costs)

    def _alike(self) -> bool:
        ratios = [
            collated / own if own else math.inf
            for own, collated in zip(self._own_costs, self._collated_costs, strict=True)
            if own or collated
        ]
        return not ratios or max(ratios) <= min(ratios) * ALIKE

    def _collated(self, sample: object) -> object:
        collate = self._collate
        if collate is None:
            return None
        try:
            return collate([sample])
        except Exception:  # noqa: BLE001 - a collate function may refuse a single sample
            self._collate = None
            return None


def listed_costs(size_of: Sequence[float], samples: int) -> Tensor:
    """The costs of all samples, (samples) float64.

    Raises:
        UserCodeError: not one finite number for each sample.
    """
    count = len(size_of)
    if count != samples:
        raise UserCodeError(
            f"size_of has {count_of(count, 'cost')}, but the training data has {count_of(samples, 'sample')}",
            known="a sequence has one cost for each sample, by index",
            try_="size_of=[len(text) for text in texts], or a function: size_of=lambda sample: len(sample['text'])",
        )
    try:
        sizes = torch.as_tensor(size_of, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise _bad_cost(f"is a sequence with a value that is not a number: {error}") from None
    if len(sizes) != count or not bool(sizes.isfinite().all()):
        raise _bad_cost("is a sequence with a value that is not a single finite number")
    return sizes


def cost_of(size_of: SizeOf, sample: object) -> float:
    """Cost of `sample` by the function `size_of`, or its elements without one. A sample that is None, not readable, costs 0.

    Raises:
        UserCodeError: `size_of` gave something other than a finite number.
    """
    if not callable(size_of) or sample is None:
        return float(elements(sample))
    result: object = size_of(sample)
    cost = result.item() if isinstance(result, Tensor) and result.numel() == 1 else result
    try:
        number = float(cost) if isinstance(cost, int | float) or hasattr(cost, "__float__") else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise _bad_cost(f"returned {repr(result)[:80]}")
    return number


def _bad_cost(problem: str) -> UserCodeError:
    return UserCodeError(
        f"size_of {problem}",
        known="the cost of a sample is one finite number, larger for samples that need more memory",
        try_="size_of=lambda sample: len(sample['text'])",
    )
