"""Does it matter how an effective batch is divided? The update of each example task, in float64 and in float32.

The same samples are run undivided and in parts: halves, ones, a large and a small one, at random; the parts collated by
themselves, so that padding differs and token weights do their work, in whole groups and in the smaller one that ends an epoch.
Told is |update of the parts - update of the whole| / |update of the whole| over all parameters, the worst of all splits. The
optimizer is SGD, whose update is the gradient: AdamW's first one is the gradient's sign, which rounding turns where it is 0.

    python -m tests.benchmarks.splits
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group
from batchcal.workload.spec.load import load_task
from batchcal.workload.step import map_tensors
from batchcal.workload.task import Task
from tests.benchmarks._limits import ROOT
from tests.benchmarks._reference import reference_of
from tests.benchmarks._report import finish, say

CPU: Final = torch.device("cpu")
TASKS: Final = ("handwriting", "textpair", "patchtst", "multiimage")
GROUP: Final = 48
LAST: Final = 29
"""What is left for the last group of an epoch."""
ALLOWED: Final = {torch.float64: 1e-6, torch.float32: 1e-4}


def loaded(name: str, dtype: torch.dtype) -> Task:
    """The example, computing in `dtype`, without dropout."""
    torch.manual_seed(0)
    task = load_task(reference_of(str(ROOT / "configs" / f"{name}.toml")), device="cpu")
    for module in task.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    task.model.to(dtype)
    loss = task.loss

    def in_dtype(model: nn.Module, batch: object) -> Tensor:
        return loss(model, map_tensors(batch, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor))

    return replace(task, loss=in_dtype, optimizer=torch.optim.SGD(task.model.parameters(), lr=1.0))


def splits(samples: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Sizes that add up to `samples`."""
    yield (samples - samples // 2, samples // 2)
    yield (1,) * samples
    yield (samples - 1, 1)
    yield (1, samples - 1)
    generator = random.Random(seed)
    for _ in range(6):
        cuts = sorted(generator.sample(range(1, samples), generator.randint(1, samples // 3)))
        yield tuple(stop - start for start, stop in zip([0, *cuts], [*cuts, samples], strict=True))


def update(task: Task, indices: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """What one optimizer step over the samples changes, all parameters in one; they are put back."""
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    collate = task.collate_fn or default_collate

    def parts() -> Iterator[MicroBatch]:
        start = 0
        for size in sizes:
            chosen = tuple(indices[start : start + size])
            yield MicroBatch(collate([task.train_data[index] for index in chosen]), size, chosen)
            start += size

    run_group(task, parts(), device=CPU, scaler=None)
    changed = torch.cat([(value - before[name]).flatten() for name, value in task.model.named_parameters()]).detach().double()
    task.model.load_state_dict(before)
    return changed


def apart(name: str, dtype: torch.dtype, samples: int, seed: int) -> tuple[float, int]:
    """The worst relative difference, and of how many splits."""
    task = loaded(name, dtype)
    count = len(task.train_data) if hasattr(task.train_data, "__len__") else samples
    indices = random.Random(seed).sample(range(count), samples)
    undivided = update(task, indices, (samples,))
    found = [float((update(task, indices, sizes) - undivided).norm() / undivided.norm()) for sizes in splits(samples, seed)]
    return max(found), len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name in TASKS:
        for dtype, allowed in ALLOWED.items():
            for samples in (GROUP, LAST):
                found = [apart(name, dtype, samples, seed) for seed in range(arguments.seeds)]
                worst = max(each for each, _ in found)
                rows.append(
                    {
                        "task": name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "samples": samples,
                        "splits": sum(count for _, count in found),
                        "apart": f"{worst:.1e}",
                        "allowed": f"{allowed:.0e}",
                        "within": worst <= allowed,
                    }
                )
                say(str(rows[-1]))
    finish("splits", rows, {"within": f"{sum(row['within'] is True for row in rows)} of {len(rows)}"})


if __name__ == "__main__":
    main()
