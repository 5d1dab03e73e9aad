"""All errors that users can get. Each class has its exit code. Only `cli` turns an error into an exit.

The exit codes are a contract (scripts depend on them): 0 ok, 1 unexpected, 2 usage or configuration,
3 no usable calibration, 4 nothing fits, 5 the user's code failed, 6 stopped with a partial and unverified result
saved, 7 measured but could not be saved, 130 and 143 signals.
"""

from __future__ import annotations

from typing import ClassVar


class BatchcalError(Exception):
    """An error that the user can act on: what happened, what is known, what to type next.

    Arguments are kept unchanged, so that an error survives pickling.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, known: str = "", try_: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.known = known
        self.try_ = try_

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.known, self.try_))

    def __str__(self) -> str:
        lines = [self.what]
        if self.known:
            lines.append(f" note: {self.known}")
        if self.try_:
            lines.append(f"  try: {self.try_}")
        return "\n".join(lines)


def _rebuild(kind: type[BatchcalError], what: str, known: str, try_: str) -> BatchcalError:
    return kind(what, known=known, try_=try_)


class UsageError(BatchcalError):
    """A flag, a value, a config file or a SPEC that cannot be used."""

    exit_code = 2


class NoCalibration(BatchcalError):
    """No usable calibration: missing, stale or refused."""

    exit_code = 3


class NothingFits(BatchcalError):
    """Not even the smallest batch fits the budget."""

    exit_code = 4


class UserCodeError(BatchcalError):
    """The user's module, factory or training step failed. The traceback is from the user's code."""

    exit_code = 5


class Partial(BatchcalError):
    """Stopped before a result was verified. The measurements are saved."""

    exit_code = 6


class NotSaved(BatchcalError):
    """Measured, but the file could not be written; the result went to stdout."""

    exit_code = 7


class GuardError(BatchcalError):
    """The code around a child process failed, not the child: a process could not be started, the zygote died twice, ..."""


class Interrupted(BatchcalError):
    """Stopped by a signal. The exit code is 128 + the signal number and takes precedence over `Partial`."""

    def __init__(self, signal_number: int, what: str = "", *, known: str = "", try_: str = "") -> None:
        super().__init__(what or f"stopped by signal {signal_number}", known=known, try_=try_)
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_interrupted, (self.signal_number, self.what, self.known, self.try_))


def _rebuild_interrupted(signal_number: int, what: str, known: str, try_: str) -> Interrupted:
    return Interrupted(signal_number, what, known=known, try_=try_)


def exit_code_of(error: BatchcalError) -> int:
    """The process exit code for `error`."""
    return 128 + error.signal_number if isinstance(error, Interrupted) else error.exit_code
