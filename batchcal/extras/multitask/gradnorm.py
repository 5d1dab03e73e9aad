"""GradNorm (Chen et al. 2018, arXiv:1711.02257): weights of several task losses, so that the tasks train at similar rates.

The training minimizes the sum of w_i x L_i. A task whose gradient is ten times as large as another's dominates the shared layers.
GradNorm chooses the weights so that the gradients are of equal size, and larger for tasks that lag behind:

    G_i = |gradient of w_i x L_i in the shared weights|        r_i = (L_i / L_i(0)) / mean of this ratio over the tasks
    wanted: G_i = mean(G) x r_i ** alpha

Two rules move the weights to this state. Both have the same fixed point; they differ in the steps:

- `ratio`: w_i x (wanted / G_i) ** rate. This is a share of the distance in the logarithm, so the size of the losses does not
  matter, and no weight can fall below 0. Noise in G_i moves the weight by the same share.
- `paper`: one step of gradient descent on sum |G_i - wanted|, with `wanted` as a constant: w_i - rate x sign(G_i - wanted) x g_i,
  where g_i = G_i / w_i is the norm of the unweighted loss. Unlike in the paper, norms are in units of mean(G): a rate that suits
  norms of about 1 would have no effect at 0.01, which a training soon reaches. The step length does not depend on the distance:
  the weights move slowly from afar and oscillate at the target. A weight that would fall below 0 is kept above it.

Afterwards, the weights of the tasks that took part are scaled to their previous sum: all weights sum to the number of tasks.

Measured on multiimage (five seeds, 400 steps of 24 samples; tests/benchmarks/gradnorm.py), validation loss as a share of its
initial value. The slowest task: 0.59 with equal weights, 0.24 with `ratio` (better in 5 of 5), 0.47 with `paper` (4 of 5). The
two faster tasks get worse: 0.03 and 0.08 with equal weights, 0.05 and 0.11 with `ratio`, 0.08 and 0.20 with `paper`.

    balancer = GradNormBalancer(model, shared=model.encoder[-1].parameters())
    for group in groups:                                        # one optimizer step each
        for batch, weight in group:                             # its micro-batches
            losses = task.losses(model, batch)                  # {name: the task's part of the mean over the batch}
            loss = balancer.loss(losses)
            balancer.observe(losses, weight=weight)             # before backward, which frees the graph
            (weight * loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        balancer.after_step()
        log(balancer.log())
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.core.values import Record
from batchcal.extras.multitask.shared import last_weight, uses

Rule = Literal["ratio", "paper"]

ALPHA: Final = 1.5
"""Strength with which lagging tasks are favoured; the paper's value for its main experiments. 0: equal gradients at any rates."""
RATES: Final[Mapping[Rule, float]] = {"ratio": 0.1, "paper": 0.025}
"""Learning rate of the weights, per measured step. `paper`: the common setting."""
INTERVAL: Final = 8
"""Optimizer steps between two measurements of the norms. On multiimage, 1 makes a step 13-14 % longer, 8 about 2 %."""
LEAST_WEIGHT: Final = 0.01
"""Lower bound of a weight. A task with weight 0 stops learning, and its gradient carries no information about it."""


class _State(Record):
    weights: dict[str, float]
    initial_losses: dict[str, float]
    due: int
    known: tuple[str, ...]
    candidates: tuple[str, ...] | None
    shared: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TaskGradients:
    """Losses and gradients of one micro-batch."""

    weight: float
    losses: Mapping[str, Tensor]
    """weight x loss."""
    gradients: Mapping[str, Sequence[Tensor]]
    """weight x gradient of the unweighted loss in the shared weights. Empty: not measured."""


class GradNormBalancer:
    """Balancer of the losses of several tasks by the norms of their gradients. It updates the weights after optimizer steps.

    The norms are those of the complete step and exact, however it was split: gradients in the shared weights are summed over its
    micro-batches, each by its weight, before the norm is computed. A task that is absent from a micro-batch adds nothing. A task
    that is absent from a complete step keeps its weight, and the others share their previous sum. The same applies to a task with
    a gradient of zero, or with a loss or gradient that is not finite. Losses must not fall below 0, since rates are their ratios.

    A measurement takes one more backward pass per task, only from its loss down to the shared weights, and memory for one
    gradient of the shared weights per task.

    Only for one process: each rank would compute its own weights. For a model under torch.compile, pass `shared` and set
    `torch._functorch.config.donated_buffer = False`: its graph is a single one, and each backward pass runs through all of it.

    Args:
        model: model whose parameters the tasks share.
        shared: weights in which norms are computed, usually those of the last layer that all tasks share. None: guessed during
            the first optimizer step, and measured from the second on. The guess is the tensor with two or more dimensions (no
            bias) that every task's loss depends on and that the forward pass uses last. It is repeated when a task joins.
        rule, alpha: see above.
        learning_rate: learning rate of the weights. None: `RATES`.
        interval: number of optimizer steps from one measurement and update of the weights to the next.
        initial_weights: task -> initial weight, scaled to sum to their number. Other tasks join with 1 when they first occur.
        initial_losses: task -> L(0). Recommended by the paper if the loss of the first step depends on chance: log(classes) for
            cross entropy. Other tasks use the loss of the first step in which they occur, if it is positive.
        least_weight: lower bound of a weight in an update.

    Raises:
        UsageError: invalid settings, or `shared` without a parameter that requires a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shared: Iterable[nn.Parameter] | None = None,
        rule: Rule = "ratio",
        alpha: float = ALPHA,
        learning_rate: float | None = None,
        interval: int = INTERVAL,
        initial_weights: Mapping[str, float] | None = None,
        initial_losses: Mapping[str, float] | None = None,
        least_weight: float = LEAST_WEIGHT,
    ) -> None:
        self.rule: Rule = rule
        self.alpha = alpha
        self.learning_rate = RATES[rule] if learning_rate is None else learning_rate
        self.interval = interval
        self.least_weight = least_weight
        _check(self, initial_weights or {}, initial_losses or {})
        self._parameters = dict(model.named_parameters())
        self._guess = shared is None
        self._shared = [parameter for parameter in shared or () if parameter.requires_grad]
        if not self._guess and not self._shared:
            raise UsageError("no parameter of `shared` requires a gradient", try_="shared=model.encoder[-1].parameters()")
        scale = len(initial_weights) / sum(initial_weights.values()) if initial_weights else 1.0
        self._weights = {name: weight * scale for name, weight in (initial_weights or {}).items()}
        self._initial_losses = dict(initial_losses or {})
        self._due = 0
        """Number of optimizer steps until norms are measured."""
        self._examined: set[str] = set()
        """Tasks whose dependence on parameters was examined."""
        self._candidates: list[str] | None = None
        """Names of the parameters that all of them depend on, in the order of the forward pass. None: no task was examined."""
        self._log: dict[str, float] = {}
        self._pending: TaskGradients | None = None
        self._begin()

    def _begin(self) -> None:
        """Begin a step without micro-batches."""
        self._weight = 0.0
        self._losses: dict[str, Tensor] = {}
        self._gradients: dict[str, list[Tensor]] = {}
        # All norms of a step are in the same weights, from its first micro-batch on.
        self._measures = self._due == 0 and bool(self._shared)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the current step by task. They sum to the number of tasks."""
        return dict(self._weights)

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the parameters in which norms are computed. Empty: not guessed yet."""
        return tuple(name for name, parameter in self._parameters.items() if any(parameter is weight for weight in self._shared))

    def loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of w_i x L_i over the given tasks: a scalar, on which the caller calls `backward`.

        Raises:
            UserCodeError: there are no losses.
        """
        if not losses:
            raise UserCodeError("there is no task loss", try_="return {'T1': loss, ...} for the tasks that the batch has")
        return torch.stack([self._weights.get(name, 1.0) * loss.reshape(()) for name, loss in losses.items()]).sum()

    def observe(self, losses: Mapping[str, Tensor], *, weight: float = 1.0, scale: float = 1.0) -> TaskGradients:
        """Record the losses of one micro-batch, before `backward` is called on them. Under no_grad, as in an evaluation, they do
        not belong to a step and are ignored.

        Args:
            losses: as passed to `loss`; scalars of the means over the batch.
            weight: weight of the gradients of the micro-batch in its group. Only the ratios in a group count.
            scale: scale of a GradScaler (`get_scale()`), so that float16 gradients do not vanish here either.

        Returns:
            The argument for `take_back` if the pass fails.

        Raises:
            UserCodeError: `shared` must be guessed, and the tasks have no weight in common or a compiled graph hides it.
        """
        if not torch.is_grad_enabled():
            return TaskGradients(0.0, {}, {})
        self._commit()
        if self._guess:
            for name, loss in losses.items():
                if name not in self._examined and loss.requires_grad:
                    self._learn(name, loss)
        gradients: dict[str, Sequence[Tensor]] = {}
        if self._measures:
            for name, loss in losses.items():
                if loss.requires_grad:
                    scaled = loss.reshape(()) * scale
                    # Outside of autocast, as for `backward`, wherever the caller is.
                    with torch.autocast(loss.device.type, enabled=False):
                        own_gradients = torch.autograd.grad(
                            scaled, self._shared, retain_graph=True, allow_unused=True, materialize_grads=True
                        )
                    gradients[name] = [gradient * (weight / scale) for gradient in own_gradients]
        detached = {name: loss.detach().reshape(()).float() * weight for name, loss in losses.items()}
        self._pending = TaskGradients(weight, detached, gradients)
        return self._pending

    def take_back(self, observation: TaskGradients) -> None:
        """Discard `observation`: its micro-batch failed in the backward pass and will be run again, perhaps in parts.

        Raises:
            UsageError: there is a later observation, or the step has ended.
        """
        if observation is not self._pending:
            raise UsageError("only the last observation of a step can be taken back")
        self._pending = None

    def after_step(self) -> None:
        """Compute the weights of the next step from the observations. Call it after the optimizer step.

        This is the only method that waits for an accelerator.

        Raises:
            UsageError: there is no observation.
        """
        self._commit()
        if self._weight <= 0:
            raise UsageError(
                "after_step needs a micro-batch with a weight above 0",
                try_="balancer.observe(losses) before each loss.backward()",
            )
        names = list(self._losses)
        values: list[float] = (torch.stack(list(self._losses.values())) / self._weight).tolist()
        losses = dict(zip(names, values, strict=True))
        norms = self._norms()
        for name, loss in losses.items():
            self._weights.setdefault(name, 1.0)
            if name not in self._initial_losses and math.isfinite(loss) and loss > 0:
                self._initial_losses[name] = loss
        self._log = {
            **{f"weight_{name}": weight for name, weight in self._weights.items()},
            **{f"loss_{name}": loss for name, loss in losses.items()},
            **{f"grad_norm_{name}": self._weights[name] * norm for name, norm in norms.items()},
        }
        self._due = self.interval - 1 if self._measures else max(0, self._due - 1)
        self._weights.update(self._moved(losses, norms))
        self._begin()

    def log(self) -> dict[str, float]:
        """Return values of the last optimizer step: `weight_NAME` in that step; `loss_NAME`, unweighted; and, if norms were
        measured, `grad_norm_NAME` of the weighted loss (G_i)."""
        return dict(self._log)

    def state_dict(self) -> dict[str, object]:
        """Return the state that a resumed run needs to continue exactly; plain values. Call it after `after_step`."""
        return _State(
            weights=self._weights,
            initial_losses=self._initial_losses,
            due=self._due,
            known=tuple(sorted(self._examined)),
            candidates=None if self._candidates is None else tuple(self._candidates),
            shared=self.shared,
        ).model_dump()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue at `state`. Rule, rates and interval are those of this object.

        Raises:
            UsageError: not a state of a balancer, or the state of another model.
        """
        try:
            loaded = _State.model_validate(state)
        except ValidationError as error:
            raise UsageError(
                "the state of the loss weights is not valid",
                known=f"{'.'.join(map(str, error.errors()[0]['loc'])) or 'state'}: {error.errors()[0]['msg']}",
            ) from error
        missing = [name for name in (*loaded.shared, *(loaded.candidates or ())) if name not in self._parameters]
        if missing:
            raise UsageError(
                "the state of the loss weights belongs to another model", known=f"this model has no parameter {missing[0]}"
            )
        self._weights, self._initial_losses = dict(loaded.weights), dict(loaded.initial_losses)
        self._due, self._examined = loaded.due, set(loaded.known)
        if self._guess:
            self._candidates = None if loaded.candidates is None else list(loaded.candidates)
            self._shared = [self._parameters[name] for name in loaded.shared]
        self._pending = None
        self._begin()

    def _commit(self) -> None:
        """Add the last observation to the step: its pass succeeded."""
        observation, self._pending = self._pending, None
        if observation is None:
            return
        self._weight += observation.weight
        for name, loss in observation.losses.items():
            self._losses[name] = self._losses[name] + loss if name in self._losses else loss
        for name, gradients in observation.gradients.items():
            if name in self._gradients:
                torch._foreach_add_(self._gradients[name], list(gradients))
            else:
                self._gradients[name] = list(gradients)

    def _learn(self, name: str, loss: Tensor) -> None:
        """Register a new task and find the weights that all tasks depend on now."""
        self._examined.add(name)
        used = uses(loss, self._parameters)
        self._candidates = [candidate for candidate in used if self._candidates is None or candidate in self._candidates]
        if not self._candidates:
            raise UserCodeError(
                f"task {name!r} has no weight in common with {', '.join(sorted(self._examined - {name})) or 'the model'}",
                known="gradients are compared in weights that every task's loss depends on",
                try_="shared=model.encoder[-1].parameters()",
            )
        self._shared = [last_weight(self._candidates, self._parameters)] if len(self._examined) > 1 else []
        self._measures = False
        self._gradients.clear()

    def _norms(self) -> dict[str, float]:
        """Return the norms of the gradients of the unweighted losses, by task. Empty if they were not measured."""
        if not self._gradients:
            return {}
        lengths = [torch.nn.utils.get_total_norm(gradients) for gradients in self._gradients.values()]
        norms: list[float] = (torch.stack(lengths).float() / self._weight).tolist()
        return dict(zip(self._gradients, norms, strict=True))

    def _moved(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> dict[str, float]:
        """Return new weights of the tasks that can be compared."""
        rates = {
            name: losses[name] / self._initial_losses[name]
            for name, norm in norms.items()
            if name in self._initial_losses and 0 < norm < math.inf and 0 <= losses[name] < math.inf
        }
        if len(rates) < 2 or sum(rates.values()) <= 0:
            return {}
        before = {name: self._weights[name] for name in rates}
        mean_rate = _mean(rates.values())
        mean_norm = _mean(before[name] * norms[name] for name in rates)
        moved: dict[str, float] = {}
        for name, weight in before.items():
            wanted = mean_norm * (rates[name] / mean_rate) ** self.alpha
            moved[name] = max(self._step(weight, norms[name] / mean_norm, wanted / mean_norm), self.least_weight)
        scale = sum(before.values()) / sum(moved.values())
        return {name: weight * scale for name, weight in moved.items()}

    def _step(self, weight: float, norm: float, wanted: float) -> float:
        """Return one weight updated by the rule. `norm` is that of the unweighted loss; both are in units of the mean norm."""
        gap = weight * norm - wanted
        if self.rule == "ratio":
            return weight * float((wanted / (weight * norm)) ** self.learning_rate)
        return weight - self.learning_rate * math.copysign(norm, gap) if gap else weight


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _check(balancer: GradNormBalancer, weights: Mapping[str, float], losses: Mapping[str, float]) -> None:
    """Raise UsageError for invalid settings."""
    for name, value, good in (
        ("alpha", balancer.alpha, 0 <= balancer.alpha < math.inf),
        ("learning_rate", balancer.learning_rate, 0 < balancer.learning_rate < math.inf),
        ("interval", balancer.interval, balancer.interval >= 1),
        ("least_weight", balancer.least_weight, 0 < balancer.least_weight < 1),
    ):
        if not good:
            raise UsageError(
                f"{name} = {value} cannot be used", known="alpha >= 0, learning_rate > 0, interval >= 1, 0 < least_weight < 1"
            )
    for kind, initial in (("weight", weights), ("loss", losses)):
        for name, value in initial.items():
            if not 0 < value < math.inf:
                raise UsageError(f"the initial {kind} of {name!r} is {value}", known="it must be positive")
