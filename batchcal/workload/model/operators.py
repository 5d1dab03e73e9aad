"""Typed base class for observers of torch operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


class OperatorWatch(TorchDispatchMode):
    """Context in which `ran` is called after each operator."""

    def __init__(self) -> None:
        initialise: Callable[[], None] = super().__init__  # torch has no types for it
        initialise()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        keywords = dict(kwargs or {})
        result: object = func(*args, **keywords)
        self.ran(func, args, keywords, result)
        return result

    def ran(self, func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], result: object) -> None:
        """Called after an operator has returned `result`."""
