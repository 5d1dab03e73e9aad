"""What a child tells its parent: closed, and nothing that is sent can be taken for something else."""

from __future__ import annotations

import json

import pytest

from batchcal.guard.channel.messages import (
    ArmRequest,
    ChildMessage,
    ListenerMessage,
    MemberArmRequest,
    PhaseStarted,
    Unfenced,
    read_back,
    written,
)
from batchcal.guard.channel.wire import Message

MESSAGES: tuple[ChildMessage, ...] = (
    PhaseStarted("measure", 2.5),
    PhaseStarted("load", None),
    ArmRequest(),
    MemberArmRequest(4321, 7),
    Unfenced(),
    ListenerMessage({"phase": "measure", "arm": True}),
)


@pytest.mark.parametrize("message", MESSAGES, ids=str)
def test_a_child_message_is_unchanged_by_a_json_round_trip(message: ChildMessage) -> None:
    assert read_back(json.loads(json.dumps(written(message)))) == message


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"phase": "lunch"},
        {"phase": ["measure"]},
        {"arm": False},
        {"arm": None},
        {"arm": "1"},
        {"arm": 1},
        {"arm": 1, "line": True},
        {"arm": 1, "line": "7"},
        {"unfenced": 0},
        {"tell": "all"},
    ],
    ids=str,
)
def test_an_unknown_message_is_ignored(line: Message) -> None:
    assert read_back(line) is None


@pytest.mark.parametrize("limit_s", ["3", True, None, [1]], ids=str)
def test_a_phase_limit_that_is_not_a_number_is_ignored(limit_s: str | bool | list[int] | None) -> None:
    assert read_back(json.loads(json.dumps({"phase": "read", "limit_s": limit_s}))) == PhaseStarted("read", None)
