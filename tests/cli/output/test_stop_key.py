"""`q` on a real (pseudo) terminal."""

from __future__ import annotations

import os
import pty
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcal.cli.output.stop_key import stopping_at_q


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """The two ends of a terminal, the second of which is stdin."""
    outer, inner = pty.openpty()
    with open(inner, closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        # It is nobody's controlling terminal here; whose foreground we are in is not what is tested.
        monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp())
        yield outer, inner
    os.close(outer)
    os.close(inner)


def test_q_stops_the_run_and_restores_the_terminal_settings(terminal: tuple[int, int]) -> None:
    outer, inner = terminal
    before, pressed = termios.tcgetattr(inner), threading.Event()
    with stopping_at_q(pressed.set) as listens:
        assert listens
        os.write(outer, b"xyz")
        os.write(outer, b"q")
        assert pressed.wait(10)
    assert termios.tcgetattr(inner) == before


def test_other_keys_do_nothing(terminal: tuple[int, int]) -> None:
    outer, _ = terminal
    pressed = threading.Event()
    with stopping_at_q(pressed.set):
        os.write(outer, b"abc\n")
        assert not pressed.wait(0.5)


def test_the_stop_key_is_disabled_when_stdin_is_not_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open(encoding="ascii") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with stopping_at_q(lambda: None) as listens:
            assert not listens


def test_the_stop_key_is_disabled_in_a_background_process(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: 1)
    with stopping_at_q(lambda: None) as listens:
        assert not listens
