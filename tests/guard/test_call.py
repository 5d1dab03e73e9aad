"""One question to a fresh process."""

from __future__ import annotations

import pytest

from batchcal.core.errors import GuardError
from batchcal.guard.call import call

pytestmark = pytest.mark.child

JOBS = "tests.support.jobs"


def test_the_answer_is_what_the_function_returned() -> None:
    assert call(f"{JOBS}:echo", {"a": [1, 2]}) == {"a": [1, 2]}
    assert call(f"{JOBS}:echo") == {}


@pytest.mark.parametrize(
    ("function", "arguments", "known"),
    [
        ("fail", {}, "ValueError: the shapes do not match"),
        ("leave", {"code": 3}, "exit status 3"),
        ("die", {"signal": 9}, "exit status -9"),
        ("no_such_function", {}, "no_such_function"),
    ],
)
def test_no_answer_says_why(function: str, arguments: dict[str, int], known: str) -> None:
    with pytest.raises(GuardError) as raised:
        call(f"{JOBS}:{function}", dict(arguments))
    assert raised.value.what == f"{JOBS}:{function} gave no answer"
    assert known in raised.value.known


def test_a_question_is_not_waited_for_for_ever() -> None:
    with pytest.raises(GuardError) as raised:
        call(f"{JOBS}:hang", timeout_s=2.5)
    assert "after 2.5 s" in raised.value.known


def test_only_our_own_functions_are_called() -> None:
    with pytest.raises(GuardError) as raised:
        call("os:getcwd")
    assert "not one of batchcal's own functions" in raised.value.known
