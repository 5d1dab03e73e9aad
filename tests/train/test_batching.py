"""Trainings whose batches are made by the cost of each sample."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from batchcal.core.errors import Interrupted, UsageError
from batchcal.core.progress import Recorded
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.workload.task import Task
from tests.support.plans import a_plan
from tests.support.trainings import SignalAt

LENGTHS = [2 + (index * 7919) % 31 for index in range(90)]


class Texts(Dataset[tuple[int, Tensor]]):
    """Sequences of very different lengths, each with its index."""

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return index, torch.rand(LENGTHS[index], generator=generator, dtype=torch.float64)


def collate(samples: list[tuple[int, Tensor]]) -> dict[str, Tensor]:
    return {
        "index": torch.tensor([index for index, _ in samples]),
        "text": pad_sequence([text for _, text in samples], batch_first=True, padding_value=-1.0),
    }


def texts(seen: list[list[int]] | None = None) -> Task:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        if seen is not None:
            seen.append(batch["index"].tolist())
        text = batch["text"]
        real = (text >= 0).double()
        answers = (model(text.unsqueeze(-1)).squeeze(-1) * real).sum(1) / real.sum(1)
        return functional.mse_loss(answers, (text * real).sum(1))

    return Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
        train_data=Texts(),
        loss=loss,
        collate_fn=collate,
        size_of=[float(length) for length in LENGTHS],
        group_of=lambda sample: "even" if sample[0] % 2 == 0 else "odd",
    )


def parameters(task: Task) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()])


def test_bucketed_training_uses_every_sample_once_within_the_planned_memory() -> None:
    seen: list[list[int]] = []
    train(texts(seen), a_plan(8, 8, 8, 6), TrainOptions(batching="bucketed"))
    assert sorted(index for batch in seen for index in batch) == list(range(90))
    padded = [len(batch) * max(LENGTHS[index] for index in batch) for batch in seen]
    assert max(padded) <= 8 * max(LENGTHS)
    assert max(map(len, seen)) > 8, "short ones are more"
    assert sum(padded) < 1.3 * sum(LENGTHS)


def test_bucketed_training_with_a_window_of_one_matches_plain_shuffling() -> None:
    plain, bucketed = texts(), texts()
    train(plain, a_plan(8, 8, 8, 6), TrainOptions(epochs=3, seed=4))
    heard = Recorded()
    train(bucketed, a_plan(8, 8, 8, 6), TrainOptions(epochs=3, seed=4, batching="bucketed", window=1), progress=heard)
    steps = [fields for name, fields in heard.events if name == "step"]
    assert [fields["samples"] for fields in steps] == [30] * 9
    # The first epoch begins with what is largest; the order of its steps and one sample of them may differ.
    torch.testing.assert_close(parameters(bucketed), parameters(plain), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_bucketed_run_resumes_with_the_remaining_samples(tmp_path: Path, after: int) -> None:
    options = TrainOptions(epochs=2, batching="bucketed")
    plan, checkpoint = a_plan(8, 8, 8, 6), tmp_path / "run.pt"
    whole, resumed = texts(), texts()
    train(whole, plan, options)
    with pytest.raises(Interrupted):
        train(texts(), plan, options, checkpoint=checkpoint, progress=SignalAt("step", after, signal.SIGTERM))
    result = train(resumed, plan, options, checkpoint=checkpoint, resume=True)
    assert [epoch.samples for epoch in result.epochs] == [90, 90]
    assert torch.equal(parameters(resumed), parameters(whole))


def test_a_mid_epoch_resume_with_another_batching_is_rejected(tmp_path: Path) -> None:
    plan, checkpoint = a_plan(8, 8, 8, 6), tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        train(texts(), plan, TrainOptions(batching="greedy"), checkpoint=checkpoint, progress=SignalAt("step", 1))
    with pytest.raises(UsageError, match="batches were made in another way"):
        train(texts(), plan, checkpoint=checkpoint, resume=True)


def test_a_small_start_limits_batches_by_their_cost() -> None:
    seen: list[list[int]] = []
    heard = Recorded()
    train(texts(seen), a_plan(8, 8, 8, 6), TrainOptions(batching="bucketed", start_micro_batch=2, fence=False), progress=heard)
    first = seen[0]
    assert len(first) * max(LENGTHS[index] for index in first) <= 2 * max(LENGTHS)
    assert sorted(index for batch in seen for index in batch) == list(range(90))
