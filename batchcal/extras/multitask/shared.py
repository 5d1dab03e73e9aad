"""Parameters that a loss depends on, and the last used one of those that several losses share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.autograd.graph import Node

from batchcal.core.errors import UserCodeError


def uses(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the names of the parameters that `loss` depends on, in the order in which the forward pass last used them.

    This walks through the complete graph and takes some microseconds per node.

    Raises:
        UserCodeError: a parameter is used in a compiled graph, which is one node and hides the dependences.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = {name: place for place, name in enumerate(parameters)}
    last: dict[str, int] = {}
    end: Node | None = loss.grad_fn
    waiting = [] if end is None else [end]
    visited = set(waiting)
    while waiting:
        node = waiting.pop()
        for earlier, _ in node.next_functions:
            if earlier is None:
                continue
            leaf: object = getattr(earlier, "variable", None)  # the node that accumulates the gradient of a leaf has it
            if isinstance(leaf, Tensor):
                name = names.get(id(leaf))
                if name is not None:
                    if "CompiledFunction" in node.name():
                        raise UserCodeError(
                            f"{name} is used in a compiled graph, which hides the weights that the losses share",
                            try_="shared=model.encoder[-1].parameters()",
                        )
                    last[name] = max(last.get(name, -1), node._sequence_nr())
            elif earlier not in visited:
                visited.add(earlier)
                waiting.append(earlier)
    return sorted(last, key=lambda name: (last[name], order[name]))


def last_weight(candidates: Sequence[str], parameters: Mapping[str, nn.Parameter]) -> nn.Parameter:
    """Return the last of `candidates`, in the order of the forward pass, with two or more dimensions, or the last if none has."""
    weights = [name for name in candidates if parameters[name].dim() > 1]
    return parameters[(weights or list(candidates))[-1]]
