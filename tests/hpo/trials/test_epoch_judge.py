"""A slow storage holds nobody up who watches memory."""

from __future__ import annotations

import threading

import pytest

from batchcal.guard.channel.wire import Message
from batchcal.hpo.trials.epoch_judge import EpochJudge, StopTrial
from batchcal.hpo.trials.job import Reached


def told(resource: int, value: float = 1.0) -> Message:
    return {"resource": resource, "value": value, "peak_bytes": 10 * resource}


def test_what_is_said_is_judged_in_order_and_the_verdict_is_noticed_at_the_next_look() -> None:
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


def test_hearing_does_not_wait_for_a_judge_that_does() -> None:
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


def test_what_the_judge_raises_is_raised_where_the_child_is_watched() -> None:
    def judge(reached: Reached) -> str | None:
        raise ConnectionError("the database is gone")

    listening = EpochJudge(judge)
    listening.add(told(1))
    listening.close()
    with pytest.raises(ConnectionError):
        listening.check()


def test_what_is_no_report_is_let_pass() -> None:
    judged: list[Reached] = []

    def judge(reached: Reached) -> str | None:
        judged.append(reached)
        return "never"

    listening = EpochJudge(judge)
    listening.add({"anything": "else"})
    listening.close()
    listening.check()
    assert judged == []
