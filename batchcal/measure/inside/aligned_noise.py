"""Random numbers of a sample that do not depend on its batch, so that a batch and its parts can be compared exactly.

A loss that draws noise for each sample (a variational autoencoder, a diffusion model, a gradient penalty) gives the samples of a
part other noise than the complete batch does. Here every random operation whose result has a row for each sample draws for the
complete batch, and takes the rows of the part.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor
from torch._ops import OpOverload

from batchcal.core.numpy_state import numpy_state
from batchcal.workload.model.operators import OperatorWatch

_CHANGES: Final = frozenset(
    {"aten::uniform_", "aten::normal_", "aten::bernoulli_", "aten::exponential_", "aten::cauchy_", "aten::log_normal_"}
    | {"aten::geometric_", "aten::random_"}
)
"""Operations that fill their first argument. Their other arguments are numbers."""
_LIKE: Final = frozenset({"aten::rand_like", "aten::randn_like", "aten::randint_like"})
"""Operations that return a tensor of the shape of their first argument."""
_OF_SIZE: Final = frozenset({"aten::rand", "aten::randn", "aten::randint"})
"""Operations whose only list is their size."""
_ALIGNED: Final = _CHANGES | _LIKE | _OF_SIZE

Draws = tuple[tuple[str, bool, tuple[int, ...]], ...]
"""Random operations in sequence: name, whether the result has a row for each sample, shape without these rows."""


class AlignedNoise(OperatorWatch):
    """Draws the random numbers of the samples from `begin` to `end` of a batch of `batch_size` samples.

    Each operation has its own seed, so the number of values that it draws does not change those of the next.
    """

    def __init__(self, batch_size: int, begin: int, end: int, *, seed: int) -> None:
        super().__init__()
        self._batch_size, self._begin, self._rows, self._seed = batch_size, begin, end - begin, seed
        self._draws: list[tuple[str, bool, tuple[int, ...]]] = []
        self._own_generator = False
        self._before = _other_generators()

    def draws(self) -> Draws | None:
        """Return the random operations so far. The noise is aligned if the complete batch and its parts have the same ones. None:
        it is not aligned in any case, because numbers came from elsewhere than torch's default generators."""
        if self._own_generator or _other_generators() != self._before:
            return None
        return tuple(self._draws)

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        keywords = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **keywords)
        if keywords.get("generator") is not None:
            self._own_generator = True
            return func(*args, **keywords)
        torch.manual_seed(self._seed + len(self._draws))
        result: object = func(*args, **keywords)
        if not isinstance(result, Tensor):
            self._own_generator = True
            return result
        name = func._schema.name
        by_numbers = name in _ALIGNED and not any(isinstance(value, Tensor) for value in args[1:])
        is_row = by_numbers and result.dim() > 0 and result.shape[0] == self._rows
        self._draws.append((name, is_row, tuple(result.shape[1:] if is_row else result.shape)))
        if is_row:
            torch.manual_seed(self._seed + len(self._draws) - 1)
            rows = self._complete_result(func, name, result, args, keywords)[self._begin : self._begin + self._rows]
            result.copy_(rows)
        return result

    def _complete_result(
        self, func: OpOverload, name: str, result: Tensor, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Tensor:
        """Return the result for the complete batch."""
        shape = (self._batch_size, *result.shape[1:])
        if name in _OF_SIZE:
            complete: object = func(*(list(shape) if isinstance(value, list | tuple) else value for value in args), **kwargs)
        else:
            complete = func(result.new_empty(shape), *args[1:], **kwargs)
        assert isinstance(complete, Tensor)
        return complete


def _other_generators() -> tuple[object, object]:
    """Return the state of the generators that no operation of torch draws from."""
    return random.getstate(), numpy_state()
