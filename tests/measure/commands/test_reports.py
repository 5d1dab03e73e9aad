"""Reports of the processes of a command: rows, times, completeness, and the outcome that follows."""

from __future__ import annotations

from typing import Literal

from batchcal.core.units import MIB
from batchcal.guard.channel.wire import JSON, Message
from batchcal.guard.ending import Ending
from batchcal.guard.outcome import Fits, OutOfMemory, UserCodeFailed
from batchcal.measure.commands.outcomes import outcome_of
from batchcal.measure.commands.reports import Reports


def report(steps: int, *, rank: int = 0, world_size: int = 1, ended: str = "done", rows: int = 32, **more: JSON) -> Message:
    """A process whose steps take 0.1 s, with two micro-batches each, and which evaluates once."""
    training: list[JSON] = []
    for number in range(steps):
        evaluated: list[JSON] = [2, 500]
        data: list[JSON] = [[1, rows], evaluated] if number == 3 else [[1, rows]]
        training.append({"at_s": 5.0 + number * 0.1, "backwards": 2, "wait_s": 0.02, "rows": data})
    content: Message = {"ended": ended, "steps": training, "workers": [[1, 3]], "lengths": [[1, 640]], "world_size": world_size}
    return {**content, **more, "rank": rank, "process": 7}


def reports_of(*messages: Message) -> Reports:
    reports = Reports()
    for message in messages:
        reports.add(message)
    return reports


def test_rows_are_those_of_the_data_that_most_steps_read() -> None:
    reports = reports_of(report(8))
    assert reports.rows_per_step == 32
    assert round(reports.seconds_per_step or 0, 3) == 0.1
    assert reports.train_rows == 640
    (one,) = reports.trained.values()
    assert (one.micro_batches, round(one.wait_share, 3)) == (2, 0.2)


def test_a_run_is_complete_once_every_rank_has_made_its_steps() -> None:
    first, second = report(8, world_size=2), report(8, rank=1, world_size=2, rows=16)
    assert not reports_of(first).is_complete
    reports = reports_of(first, second)
    assert reports.is_complete
    assert reports.rows_per_step == 48


def test_a_launcher_does_not_replace_the_report_of_rank_0() -> None:
    reports = reports_of({"ended": "", "torch": "2.13.0", "rank": 0}, report(8), report(0, ended="exit"))
    assert reports.steps == 8
    assert reports.torch == "2.13.0"


def test_messages_of_any_other_form_are_ignored() -> None:
    assert not reports_of({"ended": 3, "rank": 0}, {"steps": "?", "rank": 0}, {}).by_rank


def ending(status: int | None = None, output: str = "") -> Ending:
    """A run that the parent stopped after its last step, or that ended by itself with a status."""
    killed_for: Literal["stop"] | None = "stop" if status is None else None
    return Ending(peak_anonymous_bytes=300 * MIB, killed_for=killed_for, exit_status=status, output=output)


def test_a_complete_run_fits_if_the_processes_stay_within_the_budget() -> None:
    outcome = outcome_of(ending(), reports_of(report(8)), budget_bytes=400 * MIB, declared_batch=16)
    assert isinstance(outcome, Fits)
    assert round(outcome.samples_per_s) == 320
    above = outcome_of(ending(), reports_of(report(8)), budget_bytes=200 * MIB, declared_batch=16)
    assert isinstance(above, OutOfMemory)
    assert above.source == "budget"


def test_without_a_loader_the_declared_batch_counts() -> None:
    outcome = outcome_of(ending(), reports_of(report(8, rows=0)), budget_bytes=400 * MIB, declared_batch=64)
    assert isinstance(outcome, Fits)
    assert round(outcome.samples_per_s) == 640


def test_a_command_that_ends_early_counts_if_it_made_enough_steps() -> None:
    ended = ending(0)
    assert isinstance(outcome_of(ended, reports_of(report(5, ended="exit")), budget_bytes=400 * MIB, declared_batch=1), Fits)
    few = outcome_of(ended, reports_of(report(2, ended="exit", backwards=4)), budget_bytes=400 * MIB, declared_batch=1)
    assert isinstance(few, UserCodeFailed)
    assert few.error == "the command ended after 2 optimizer steps and 4 backward passes; at least 3 steps are needed"


def test_an_allocation_that_failed_is_out_of_memory_and_another_error_is_not() -> None:
    def raised(kind: str, message: str) -> Message:
        link: Message = {"type_name": kind, "bases": [kind, "Exception"], "message": message, "errno": None}
        return report(1, ended="raised", raised={"chain": [link]})

    failed = ending(1, "Traceback ...")
    text = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 B."
    memory = outcome_of(failed, reports_of(raised("RuntimeError", text)), budget_bytes=400 * MIB, declared_batch=1)
    assert isinstance(memory, OutOfMemory)
    error = outcome_of(failed, reports_of(raised("ValueError", "no")), budget_bytes=400 * MIB, declared_batch=1)
    assert isinstance(error, UserCodeFailed)
    assert error.error == "ValueError: no"
    unknown = outcome_of(failed, reports_of(), budget_bytes=400 * MIB, declared_batch=1)
    assert isinstance(unknown, UserCodeFailed)
    assert unknown.error == "the command ended with exit code 1"
