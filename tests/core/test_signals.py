"""A signal is an error of ours, once; a repetition of SIGTERM is the same request."""

from __future__ import annotations

import signal

import pytest

from batchcal.core import signals
from batchcal.core.errors import Interrupted
from batchcal.core.signals import raised_as_interrupted


def test_a_repeated_sigterm_does_not_interrupt_cleanup() -> None:
    ended = []
    with pytest.raises(Interrupted) as caught, raised_as_interrupted():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # `timeout` signals its child and then its group
            ended.append(True)
    assert caught.value.signal_number == signal.SIGTERM
    assert ended


def test_a_second_signal_after_the_repeat_window_ends_the_process_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "REPEAT_S", 0.0)
    died = []
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "SIG_DFL", lambda number, frame: died.append(number))
    with pytest.raises(Interrupted), raised_as_interrupted():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            try:
                signal.raise_signal(signal.SIGTERM)
            except Interrupted:
                pytest.fail("raised twice")
    assert died == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
