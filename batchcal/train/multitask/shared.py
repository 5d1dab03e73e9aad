"""Which parameters a loss depends on, and which of those that several share is used last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.autograd.graph import Node

from batchcal.core.errors import UserCodeError


def uses(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the parameters that `loss` depends on, in the order in which the forward pass last used them.

    Walks through the whole graph: some microseconds a node.

    Raises:
        UserCodeError: a parameter is used in a compiled graph, which is one node and does not tell what depends on what.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = {name: place for place, name in enumerate(parameters)}
    last: dict[str, int] = {}
    end: Node | None = loss.grad_fn
    waiting = [] if end is None else [end]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        for earlier, _ in node.next_functions:
            if earlier is None:
                continue
            leaf: object = getattr(earlier, "variable", None)  # what collects the gradient of a leaf knows it
            if isinstance(leaf, Tensor):
                name = names.get(id(leaf))
                if name is not None:
                    if "CompiledFunction" in node.name():
                        raise UserCodeError(
                            f"{name} is used in a compiled graph, which does not tell what the losses have in common",
                            try_="shared=model.encoder[-1].parameters()",
                        )
                    last[name] = max(last.get(name, -1), node._sequence_nr())
            elif earlier not in seen:
                seen.add(earlier)
                waiting.append(earlier)
    return sorted(last, key=lambda name: (last[name], order[name]))


def last_weight(candidates: Sequence[str], parameters: Mapping[str, nn.Parameter]) -> nn.Parameter:
    """Of `candidates`, in the order of the forward pass: the last with two dimensions or more; the last of all where none has."""
    weights = [name for name in candidates if parameters[name].dim() > 1]
    return parameters[(weights or list(candidates))[-1]]
