"""Errors say what happened, what is known and what to type; each has its own exit code and travels between processes."""

from __future__ import annotations

import pickle

import pytest

from batchcal.core.errors import (
    BatchcalError,
    GuardError,
    Interrupted,
    NoCalibration,
    NothingFits,
    NotSaved,
    Partial,
    UsageError,
    UserCodeError,
    exit_code_of,
)

CODES: dict[type[BatchcalError], int] = {
    BatchcalError: 1,
    UsageError: 2,
    NoCalibration: 3,
    NothingFits: 4,
    UserCodeError: 5,
    Partial: 6,
    NotSaved: 7,
}


def descendants(kind: type[BatchcalError]) -> set[type[BatchcalError]]:
    return {kind} | {found for child in kind.__subclasses__() for found in descendants(child)}


@pytest.mark.parametrize("kind", CODES)
def test_each_error_has_its_documented_exit_code(kind: type[BatchcalError]) -> None:
    assert exit_code_of(kind("it broke")) == CODES[kind]


def test_error_exit_codes_are_unique_except_for_unexpected_errors() -> None:
    told = [kind.exit_code for kind in descendants(BatchcalError) if "exit_code" in vars(kind)]

    assert len(told) == len(set(told))
    assert exit_code_of(GuardError("the zygote died twice")) == 1


@pytest.mark.parametrize(("signal_number", "code"), [(2, 130), (15, 143)])
def test_a_signal_determines_the_exit_code(signal_number: int, code: int) -> None:
    assert exit_code_of(Interrupted(signal_number)) == code


@pytest.mark.parametrize("kind", CODES)
def test_an_error_is_the_same_after_pickling(kind: type[BatchcalError]) -> None:
    error = kind("it broke", known="the disk is full", try_="df -h")

    again: object = pickle.loads(pickle.dumps(error))

    assert isinstance(again, kind)
    assert (again.what, again.known, again.try_, str(again)) == (error.what, error.known, error.try_, str(error))


def test_an_interruption_is_the_same_after_pickling() -> None:
    again: object = pickle.loads(pickle.dumps(Interrupted(15, "stopped in probe 3", known="2 are saved", try_="run it again")))

    assert isinstance(again, Interrupted)
    assert exit_code_of(again) == 143
    assert str(again) == "stopped in probe 3\n note: 2 are saved\n  try: run it again"


def test_an_error_message_omits_empty_parts() -> None:
    assert str(UsageError("no")) == "no"
    assert str(UsageError("no", try_="yes")) == "no\n  try: yes"
    assert str(Interrupted(2)) == "stopped by signal 2"
