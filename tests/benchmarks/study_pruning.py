"""Epochs until a study has found what it would find without pruning, less 1 %: none, median, successive halving, Hyperband, one
epoch and keep the top, and batchcal's pruner with early stopping. Twenty orders of the same trials, on recorded learning curves.

The curves are of small nets that tell handwritten digits apart: learning rate, width, depth, dropout, weight decay and batch size
at random, 27 epochs each, accuracy on held-out digits after each. They are recorded once (--curves FILE, about five minutes);
replayed, a result depends on no machine. A trial's first epochs are what they are however long it goes on, so a replay is exact.

    python -m tests.benchmarks.study_pruning --curves /tmp/curves.json --seeds 20
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import optuna
import torch
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from batchcal.hpo.config import MIN_DELTA, PATIENCE, PrunerSettings
from batchcal.hpo.search.pruner import make_pruner
from batchcal.workload.spec.load import load_task
from tests.benchmarks._limits import ROOT
from tests.benchmarks._reference import reference_of
from tests.benchmarks._report import finish, say

EPOCHS: Final = 27
CURVES: Final = 240
TRIALS: Final = 40
REGRET: Final = 0.01
Curve = tuple[float, ...]
"""Held-out accuracy after each epoch."""


@dataclass(frozen=True)
class Replay:
    """What one order of trials came to."""

    epochs: int
    """Of all trials."""
    until: int | None
    """When a complete trial was within 1 % of what no pruning finds. None: none was."""
    best: float


def record(path: Path, count: int) -> None:
    """Trains `count` nets and writes their curves."""
    torch.manual_seed(0)
    task = load_task(reference_of(str(ROOT / "configs" / "handwriting.toml")), device="cpu")
    assert task.eval_data is not None
    train_inputs, train_labels = _first(task.train_data, 1500)
    held_inputs, held_labels = _first(task.eval_data, 500)
    chance = random.Random(0)
    curves: list[Curve] = []
    for number in range(count):
        curves.append(_curve(chance, train_inputs, train_labels, held_inputs, held_labels))
        if number % 20 == 0:
            say(f"{number} of {count}: {curves[-1][0]:.3f} .. {curves[-1][-1]:.3f}")
    path.write_text(json.dumps(curves), encoding="utf-8")


def _first(data: Dataset[object], most: int) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = list(itertools.islice(DataLoader(data, batch_size=None), most))
    return torch.stack([image.flatten() for image, _ in pairs]), torch.tensor([int(label) for _, label in pairs])


def _curve(
    chance: random.Random,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    held_inputs: torch.Tensor,
    held_labels: torch.Tensor,
) -> Curve:
    width, depth = chance.choice([16, 32, 64, 128]), chance.choice([1, 2, 3])
    dropout, batch = chance.uniform(0.0, 0.5), chance.choice([16, 32, 64, 128])
    layers: list[nn.Module] = []
    size = inputs.shape[1]
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)]
        size = width
    model = nn.Sequential(*layers, nn.Linear(size, 10))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=10 ** chance.uniform(-4, -0.5), momentum=0.9, weight_decay=10 ** chance.uniform(-5, -2)
    )
    told: list[float] = []
    for _ in range(EPOCHS):
        model.train()
        for indices in torch.randperm(len(inputs)).split(batch):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[indices]), labels[indices]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            told.append(float((model(held_inputs).argmax(1) == held_labels).float().mean()))
    return tuple(told)


def replayed(curves: Sequence[Curve], pruner: BasePruner, *, early_stopping: bool, goal: float) -> Replay:
    """One after the other, as a single worker would."""
    # The name decides about Hyperband's brackets.
    study = optuna.create_study(study_name="replay", direction="maximize", pruner=pruner, sampler=RandomSampler(seed=0))
    spent, until, best = 0, None, 0.0
    for curve in curves:
        trial = study.ask()
        state, so_far, since = optuna.trial.TrialState.COMPLETE, 0.0, 0
        for epoch, value in enumerate(curve, 1):
            spent += 1
            since = 0 if value > so_far + MIN_DELTA else since + 1
            so_far = max(so_far, value)
            trial.report(so_far, epoch)
            if epoch < EPOCHS and trial.should_prune():
                state = optuna.trial.TrialState.PRUNED
                break
            if early_stopping and since >= PATIENCE:
                break
        if state is optuna.trial.TrialState.COMPLETE:
            study.tell(trial, so_far)
            best = max(best, so_far)
            if until is None and best >= goal:
                until = spent
        else:
            study.tell(trial, state=state)
    return Replay(spent, until, best)


def one_epoch(curves: Sequence[Curve], keep: int, goal: float) -> Replay:
    """All for one epoch, the best `keep` to their end."""
    top = sorted(curves, key=lambda curve: -curve[0])[:keep]
    spent, until, best = len(curves), None, 0.0
    for curve in top:
        spent += EPOCHS - 1
        best = max(best, *curve)
        if until is None and best >= goal:
            until = spent
    return Replay(spent, until, best)


def contenders(trials: int) -> dict[str, Callable[[Sequence[Curve], float], Replay]]:
    """By name: order of trials, goal -> what came of it."""

    def by(make: Callable[[], BasePruner], *, early_stopping: bool = False) -> Callable[[Sequence[Curve], float], Replay]:
        return lambda curves, goal: replayed(curves, make(), early_stopping=early_stopping, goal=goal)

    def ours(**settings: object) -> Callable[[], BasePruner]:
        return lambda: make_pruner(PrunerSettings.model_validate(settings), resource=EPOCHS, trials=trials)[0]

    found: dict[str, Callable[[Sequence[Curve], float], Replay]] = {
        "none": by(NopPruner),
        "median": by(lambda: MedianPruner(n_startup_trials=5)),
        "halving": by(lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)),
        "hyperband": by(lambda: HyperbandPruner(min_resource=1, max_resource=EPOCHS, reduction_factor=3)),
        "batchcal": by(ours(), early_stopping=True),
    }
    return found | {f"one epoch, top {keep}": _keeping(keep) for keep in (1, 2, 3, 5)}


def _keeping(keep: int) -> Callable[[Sequence[Curve], float], Replay]:
    return lambda curves, goal: one_epoch(curves, keep, goal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, required=True, help="recorded there, where it is not")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=TRIALS)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not arguments.curves.exists():
        record(arguments.curves, CURVES)
    curves = [tuple(curve) for curve in json.loads(arguments.curves.read_text(encoding="utf-8"))]
    ended: dict[str, list[Replay]] = {}
    for seed in range(arguments.seeds):
        order = random.Random(seed).sample(curves, arguments.trials)
        best = max(max(curve) for curve in order)
        for name, run in contenders(arguments.trials).items():
            ended.setdefault(name, []).append(run(order, best * (1 - REGRET)))
    rows = [_row(name, found, ended["none"]) for name, found in ended.items()]
    ours = next(row for row in rows if row["pruner"] == "batchcal")
    finish("study_pruning", rows, {"fewer_epochs": ours["fewer"], "regret_p90": ours["regret_p90"]})


def _row(name: str, found: Sequence[Replay], whole: Sequence[Replay]) -> dict[str, object]:
    regrets = sorted(1 - one.best / other.best for one, other in zip(found, whole, strict=True))
    reached = [one.until for one in found if one.until is not None]
    return {
        "pruner": name,
        "epochs": statistics.median(one.epochs for one in found),
        "fewer": round(statistics.median(1 - one.epochs / other.epochs for one, other in zip(found, whole, strict=True)), 3),
        "until_goal": statistics.median(reached) if reached else None,
        "reached": f"{len(reached)} of {len(found)}",
        "regret": round(statistics.median(regrets), 4),
        "regret_p90": round(regrets[int(0.9 * len(regrets))], 4),
    }


if __name__ == "__main__":
    main()
