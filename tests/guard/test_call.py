"""One question to a fresh process."""

from __future__ import annotations

import pytest

from batchcal.core.errors import GuardError
from batchcal.guard.call import call
from batchcal.guard.job import Function, name_of
from tests.support import jobs

pytestmark = pytest.mark.child


@pytest.mark.smoke
def test_call_returns_the_result_of_the_function() -> None:
    assert call(jobs.echo, {"a": [1, 2]}) == {"a": [1, 2]}
    assert call(jobs.echo) == {}


@pytest.mark.parametrize(
    ("function", "arguments", "known"),
    [
        (jobs.fail, {}, "ValueError: the shapes do not match"),
        (jobs.leave, {"code": 3}, "exit status 3"),
        (jobs.die, {"signal": 9}, "exit status -9"),
    ],
)
def test_a_call_without_a_result_raises_an_error_with_the_reason(
    function: Function, arguments: dict[str, int], known: str
) -> None:
    with pytest.raises(GuardError) as raised:
        call(function, dict(arguments))
    assert raised.value.what == f"{name_of(function)} returned no result"
    assert known in raised.value.known


def test_a_call_ends_after_its_timeout() -> None:
    with pytest.raises(GuardError) as raised:
        call(jobs.hang, timeout_s=2.5)
    assert "after 2.5 s" in raised.value.known


def test_a_function_that_a_child_cannot_import_is_rejected() -> None:
    with pytest.raises(ValueError, match="not a function of a module"):
        call(lambda arguments, context: None)
