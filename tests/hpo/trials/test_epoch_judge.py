"""A slow storage holds nobody up who watches memory."""

from __future__ import annotations

import threading

import pytest

from batchcal.guard.channel.wire import Message
from batchcal.hpo.trials.epoch_judge import EpochJudge, StopTrial
from batchcal.hpo.trials.job import Reached


def told(resource: int, value: float = 1.0) -> Message:
    return {"resource": resource, "value": value, "peak_bytes": 10 * resource}


def test_reports_are_judged_by_sequence_and_check_raises_the_verdict() -> None:
    seen: list[int] = []

    def judge(reached: Reached) -> str | None:
        seen.append(reached.resource)
        return "enough" if reached.resource == 2 else None

    listening = EpochJudge(judge)
    for resource in (1, 2, 3):
        listening.add(told(resource))
    listening.close()
    with pytest.raises(StopTrial, match="enough"):
        listening.check()
    assert seen == [1, 2], "after the verdict nothing is judged"
    assert listening.peak_bytes == 30


def test_adding_a_report_does_not_wait_for_a_slow_judge() -> None:
    release = threading.Event()

    def judge(reached: Reached) -> str | None:
        release.wait(10)
        return None

    listening = EpochJudge(judge)
    listening.add(told(1))
    listening.check()
    release.set()
    listening.close()
    assert listening.error is None


def test_an_exception_of_the_judge_is_raised_by_check() -> None:
    def judge(reached: Reached) -> str | None:
        raise ConnectionError("the database is gone")

    listening = EpochJudge(judge)
    listening.add(told(1))
    listening.close()
    with pytest.raises(ConnectionError):
        listening.check()


def test_a_message_that_is_not_a_report_is_ignored() -> None:
    judged: list[Reached] = []

    def judge(reached: Reached) -> str | None:
        judged.append(reached)
        return "never"

    listening = EpochJudge(judge)
    listening.add({"anything": "else"})
    listening.close()
    listening.check()
    assert judged == []
