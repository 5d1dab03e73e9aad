"""float16 with a GradScaler. Run directly: exits with 0 if batchcal skips as many steps as a plain loop over the same groups."""

import sys

import torch
from torch import nn

import batchcal


class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 8192

    def __getitem__(self, index):
        return torch.randn(48, generator=torch.Generator().manual_seed(index)), index % 7


def task(device=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(48, 200), nn.ReLU(), nn.Linear(200, 7))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])

    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    return batchcal.Task(model=model, optimizer=optimizer, train_data=Points(), loss=loss, autocast=torch.float16)


def skipped(made, batches, step):
    """How many of 20 steps change nothing."""
    count = 0
    for _ in range(20):
        before = [parameter.detach().clone() for parameter in made.model.parameters()]
        step(batches)
        count += all(torch.equal(one, other) for one, other in zip(before, made.model.parameters(), strict=True))
    return count


def of_batchcal(batches):
    from batchcal.runtime.batches import MicroBatch
    from batchcal.runtime.group import run_group
    from batchcal.workload.step import make_scaler

    made, cpu = task(), torch.device("cpu")
    scaler = make_scaler(made, cpu)
    return skipped(
        made,
        batches,
        lambda group: run_group(made, [MicroBatch(batch, len(batch[1])) for batch in group], device=cpu, scaler=scaler),
    )


def of_plain(batches):
    made, scaler = task(), torch.amp.GradScaler("cpu")

    def step(group):
        for batch in group:
            with torch.autocast("cpu", dtype=torch.float16):
                loss = made.loss(made.model, batch)
            scaler.scale(loss / len(group)).backward()
        scaler.step(made.optimizer)
        scaler.update()
        made.optimizer.zero_grad()

    return skipped(made, batches, step)


if __name__ == "__main__":
    unequal = 0
    for size, parts in ((256, 1), (256, 4), (4096, 8)):
        samples = [task().train_data[index] for index in range(size)]
        batches = [torch.utils.data.default_collate(samples[part::parts]) for part in range(parts)]
        ours, plain = of_batchcal(batches), of_plain(batches)
        print(f"{size} in {parts}: batchcal skips {ours} of 20 steps, a plain loop {plain}")
        unequal += ours != plain
    sys.exit(unequal)
