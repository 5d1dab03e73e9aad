"""What a pass changed besides gradients is as it was before it."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from batchcal.train.recovery.undo import Undo

CPU = torch.device("cpu")


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_restoring_a_pass_repeats_all_random_numbers() -> None:
    undo = Undo(nn.Linear(2, 2), CPU)
    undo.beginning()
    before = undo.before()
    first = drawn()
    assert undo.restore(before) == ""
    assert drawn() == first


def test_the_random_state_is_restored_in_every_pass() -> None:
    undo = Undo(nn.Linear(2, 2), CPU)
    for _ in range(4):
        undo.beginning()
        undo.before()
        drawn()
        before = undo.before()
        second = drawn()
        assert undo.restore(before) == ""
        assert drawn() == second


def test_the_random_state_is_restored_to_the_start_of_the_group() -> None:
    undo = Undo(nn.Linear(2, 2), CPU)
    undo.beginning()
    undo.beginning()
    beginning = undo.beginning()
    undo.before()
    first = drawn()
    undo.restore(beginning)
    assert drawn() == first


def test_the_first_use_of_a_random_generator_is_reported() -> None:
    undo = Undo(nn.Linear(2, 2), CPU)
    for _ in range(3):
        undo.beginning()
        undo.before()
    np.random.rand()  # in the loading of a batch or in a pass: nobody knows
    before = undo.before()
    assert undo.restore(before) == "a random number generator"
    again = undo.before()
    np.random.rand()
    assert undo.restore(again) == ""


def test_a_buffer_that_first_changes_in_the_failed_pass_is_reported() -> None:
    model = nn.Module()
    model.register_buffer("seen", torch.zeros(1))
    undo = Undo(model, CPU)
    undo.before()
    before = undo.before()
    buffer = model.get_buffer("seen")
    buffer += 1
    assert undo.restore(before) == "buffer .seen of the model"
