"""The plain loop learns to read real digits."""

from __future__ import annotations

import torch

from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.train.seed import seed_everything
from batchcal.workload.examples.handwriting import task
from tests.support.plans import a_plan


def test_two_epochs_reduce_the_loss_and_classify_most_digits_correctly() -> None:
    seed_everything(0)
    digits = task(torch.device("cpu"), channels=8, repeat_to=1280, learning_rate=3e-3)
    result = train(digits, a_plan(8, 8, eval_batch=180), TrainOptions(epochs=2, seed=0))
    first, second = result.epochs
    assert second.loss < first.loss * 0.6
    losses = [one.evaluation["loss"] or 0.0 for one in result.epochs]
    assert losses[1] < losses[0]
    assert (second.evaluation["accuracy"] or 0.0) > 0.85
    assert first.samples == second.samples == 1280
