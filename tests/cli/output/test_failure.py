"""Errors as they are told, signals as they are raised, and how to speak."""

from __future__ import annotations

import json
import signal

import pytest

from batchcal.cli.output.failure import as_json, in_three_parts, misused, unexpected
from batchcal.cli.output.messages import Messages
from batchcal.core.errors import Interrupted, NoCalibration, UserCodeError
from batchcal.core.signals import raised_as_interrupted


def test_an_error_message_is_indented_and_has_no_control_characters() -> None:
    error = UserCodeError("your \x1b[31mcode\x07 failed", known="Traceback:\n  line 3\r\nValueError", try_="python x.py")
    assert in_three_parts(error) == (
        "error: your code failed\n note: Traceback:\n         line 3\n       ValueError\n  try: python x.py"
    )
    assert in_three_parts(NoCalibration("no"), colour=True) == "\x1b[1;31merror:\x1b[0m no"


def test_a_signal_is_reported_in_one_line_by_name() -> None:
    assert in_three_parts(Interrupted(signal.SIGINT)) == "stopped by SIGINT"
    assert json.loads(as_json(Interrupted(signal.SIGTERM)))["error"]["exit_code"] == 143
    kept = Interrupted(signal.SIGINT, "stopped in epoch 2", known="the checkpoint is x.pt")
    assert in_three_parts(kept).startswith("error: stopped in epoch 2\n note: the checkpoint")


def test_only_usage_errors_are_reported_as_usage_errors() -> None:
    assert misused(ValueError("no")) is None
    assert "shows the traceback" in unexpected(ValueError("no"), verbose=False).try_


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raised_as_interrupted():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("arguments", "as_json", "for_eval"),
    [
        ([], False, False),
        (["plan", "--format", "sh"], False, True),
        (["plan", "--format=json"], True, False),
        (["show", "--json"], True, False),
        (["show", "--", "--json"], False, False),
        (["plan", "--format"], False, False),
    ],
)
def test_the_output_format_is_detected_before_the_arguments_are_parsed(
    arguments: list[str], as_json: bool, for_eval: bool
) -> None:
    messages = Messages.of(arguments)
    assert (messages.as_json, messages.for_eval) == (as_json, for_eval)


def test_a_system_without_process_limits_gets_a_hint_to_use_wsl() -> None:
    error = misused(ModuleNotFoundError("No module named 'resource'", name="resource"))
    assert error is not None
    assert "wsl" in error.try_
    assert misused(ModuleNotFoundError("No module named 'wandb'", name="wandb")) is None
