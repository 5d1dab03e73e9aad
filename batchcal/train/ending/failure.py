"""End of a training after an error or a signal: the state that is saved, and the error that is raised."""

from __future__ import annotations

import signal
from typing import Final

from batchcal.core.errors import BatchcalError, Interrupted, NothingFits
from batchcal.core.units import format_bytes
from batchcal.guard.children.memory_errors import memory_error
from batchcal.guard.children.report import describe, let_go
from batchcal.runtime.worker_deaths import death_behind_a_lost_connection, worker_death
from batchcal.train.checkpoints.checkpoint import Standing
from batchcal.train.ending.stop_request import StopRequest
from batchcal.train.ending.worker_failures import SIGNAL_FOLLOWS_S, blame_workers, error_of, workers_hold
from batchcal.train.training_setup import TrainingSetup
from batchcal.workload.model.loss_error import LossIsNoNumber
from batchcal.workload.step import clear_gradients

GROWN: Final = 1.25
"""Ratio of memory at rest to the planned peak that shows growth: with glibc, peaks themselves differ by up to 8 %."""


def error_to_raise(error: Exception, setup: TrainingSetup, standing: Standing, wish: StopRequest) -> BatchcalError | None:
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
        let_go(error)
    # An error that refuses the optimizer's step is raised before the step.
    if setup.control.in_update() and not refused:
        if not out_of_memory:
            error.add_note(setup.writer.earlier())
            return None
        return NothingFits(
            f"memory ran out in the optimizer's step: {error}",
            known=f"some parameters were updated and others were not: that state is not kept; {setup.writer.earlier()}",
            try_="a larger --margin, then the same command with --resume",
        )
    if death is not None:
        wish.await_signal(SIGNAL_FOLLOWS_S)
    near_limit = death is not None and setup.control.near_limit()
    held = workers_hold() if refused or out_of_memory else None  # read it now: the workers may end with the loader
    clear_gradients(setup.task)
    setup.control.rewind()
    setup.writer.save(standing, last=True)
    kept = setup.writer.outcome()
    if isinstance(error, NothingFits | LossIsNoNumber):
        same = type(error)(error.what, known=f"{error.known}; {kept}" if error.known else kept, try_=error.try_)
        return blame_workers(same, held, setup.control.monitor.room().limit_bytes) if isinstance(same, NothingFits) else same
    if wish.signal is not None:
        # Programs that a dataset started got the signal, too.
        return interrupted(wish.signal, setup, standing, then=raised.headline)
    if death is not None:
        killed = setup.kernel_kills.happened()
        return error_of(death, detail=raised.headline, known=kept, kernel_killed=killed, near_limit=near_limit)
    if out_of_memory:
        between = _between_steps(error, setup, kept)
        return blame_workers(between, held, setup.control.monitor.room().limit_bytes)
    error.add_note(kept)
    return None


def _between_steps(error: Exception, setup: TrainingSetup, kept: str) -> NothingFits:
    """Return the error for memory that ran out while samples were read or results were kept. Steps are recovered elsewhere."""
    what = f"memory ran out between two steps: {error}"
    held = setup.control.monitor.own_bytes()
    if setup.device.type != "cpu" or held < setup.planned_peak_bytes * GROWN:
        return NothingFits(what, known=kept, try_="a larger --margin")
    return NothingFits(
        what,
        known=f"this process holds {format_bytes(held)} between steps, and a complete step was planned with "
        f"{format_bytes(setup.planned_peak_bytes)}: something keeps what it reads or computes; {kept}",
        try_="a bound for what is kept (a cache of the dataset, a list of losses or outputs), or a larger container",
    )


def interrupted(number: int, setup: TrainingSetup, standing: Standing, *, then: str = "") -> Interrupted:
    """Return the error for a signal.

    Args:
        then: the failure after the signal.
    """
    return Interrupted(
        number,
        f"stopped by {signal.Signals(number).name} in epoch {standing.epoch}, after step {standing.group}",
        known="; ".join(filter(None, (setup.writer.outcome(), then and f"after the signal: {then}"))),
        try_=_how_to_resume(setup),
    )


def _how_to_resume(setup: TrainingSetup) -> str:
    return "without --no-checkpoint, or --checkpoint FILE" if setup.writer.path is None else "the same command with --resume"
