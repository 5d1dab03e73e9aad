"""End of a training after an error or a signal: the state that is saved, and the error that is raised."""

from __future__ import annotations

import signal
from typing import Final

from batchcal.core.errors import BatchcalError, Interrupted, NothingFits
from batchcal.core.units import format_bytes
from batchcal.guard.children.memory_errors import memory_error
from batchcal.guard.children.report import describe, free_frames
from batchcal.runtime.worker_deaths import death_behind_a_lost_connection, worker_death
from batchcal.train.checkpoints.checkpoint import Standing
from batchcal.train.ending.stop_request import StopRequest
from batchcal.train.ending.worker_failures import SIGNAL_FOLLOWS_S, blame_workers, error_of, memory_of_workers
from batchcal.train.training_setup import TrainingSetup
from batchcal.workload.model.loss_error import LossIsNoNumber
from batchcal.workload.step import clear_gradients

GROWN: Final = 1.25
"""Ratio of memory at rest to the planned peak that shows growth: with glibc, peaks themselves differ by up to 8 %."""


def error_to_raise(error: Exception, setup: TrainingSetup, standing: Standing, stop_request: StopRequest) -> BatchcalError | None:
    """Return the error for `error`, which came after `standing`. None: `error` itself. The state after a step is saved."""
    if isinstance(error, Interrupted):
        # The second signal, which may arrive at any point.
        return Interrupted(error.signal_number, error.what, known=setup.writer.earlier(), try_=_how_to_resume(setup))
    refused = isinstance(error, NothingFits | LossIsNoNumber)
    raised = describe(error, "measure")
    kind = None if refused else memory_error(raised)
    death = worker_death(raised) or (death_behind_a_lost_connection() if kind == "worker" else None)
    out_of_memory = death is None and kind is not None
    if out_of_memory:
        # The frames of the failed code hold its tensors.
        free_frames(error)
    # An error that refuses the optimizer's step is raised before the step.
    if setup.control.in_update() and not refused:
        if not out_of_memory:
            error.add_note(setup.writer.earlier())
            return None
        return NothingFits(
            f"memory ran out in the optimizer's step: {error}",
            known=f"some parameters were updated and others were not, so this state is not saved; {setup.writer.earlier()}",
            try_="a larger --margin, then the same command with --resume",
        )
    if death is not None:
        stop_request.await_signal(SIGNAL_FOLLOWS_S)
    near_limit = death is not None and setup.control.near_limit()
    worker_memory = memory_of_workers() if refused or out_of_memory else None  # read it now: the workers may end with the loader
    clear_gradients(setup.task)
    setup.control.rewind()
    setup.writer.save(standing, last=True)
    outcome = setup.writer.outcome()
    if isinstance(error, NothingFits | LossIsNoNumber):
        same = type(error)(error.what, known=f"{error.known}; {outcome}" if error.known else outcome, try_=error.try_)
        return (
            blame_workers(same, worker_memory, setup.control.monitor.available().limit_bytes)
            if isinstance(same, NothingFits)
            else same
        )
    if stop_request.signal is not None:
        # Programs that a dataset started got the signal, too.
        return interrupted(stop_request.signal, setup, standing, failure=raised.headline)
    if death is not None:
        killed = setup.kernel_kills.happened()
        return error_of(death, detail=raised.headline, known=outcome, kernel_killed=killed, near_limit=near_limit)
    if out_of_memory:
        between = _between_steps(error, setup, outcome)
        return blame_workers(between, worker_memory, setup.control.monitor.available().limit_bytes)
    error.add_note(outcome)
    return None


def _between_steps(error: Exception, setup: TrainingSetup, outcome: str) -> NothingFits:
    """Return the error for memory that ran out while samples were read or results were kept. Steps are recovered elsewhere."""
    message = f"memory ran out between two steps: {error}"
    own_bytes = setup.control.monitor.own_bytes()
    if setup.device.type != "cpu" or own_bytes < setup.planned_peak_bytes * GROWN:
        return NothingFits(message, known=outcome, try_="a larger --margin")
    return NothingFits(
        message,
        known=f"this process holds {format_bytes(own_bytes)} between steps, but the plan expects a peak of "
        f"{format_bytes(setup.planned_peak_bytes)} in a step: some code keeps the data that it reads or computes; {outcome}",
        try_="limit the data that your code keeps (a cache of the dataset, a list of losses), or use a larger container",
    )


def interrupted(number: int, setup: TrainingSetup, standing: Standing, *, failure: str = "") -> Interrupted:
    """Return the error for a signal.

    Args:
        failure: the failure after the signal.
    """
    return Interrupted(
        number,
        f"stopped by {signal.Signals(number).name} in epoch {standing.epoch}, after step {standing.group}",
        known="; ".join(filter(None, (setup.writer.outcome(), failure and f"after the signal: {failure}"))),
        try_=_how_to_resume(setup),
    )


def _how_to_resume(setup: TrainingSetup) -> str:
    return "--checkpoint FILE, or leave out --no-checkpoint" if setup.writer.path is None else "the same command with --resume"
