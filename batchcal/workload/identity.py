"""Identity of a training: of a task or of a command."""

from __future__ import annotations

from batchcal.workload.command.identity import identify_command
from batchcal.workload.spec.identity import TaskIdentity, identify
from batchcal.workload.spec.reference import TaskReference


def identity_of(reference: TaskReference) -> TaskIdentity:
    """Return the identity of a task or a command, without importing its code.

    Raises:
        UsageError, UserCodeError: see `identify`.
    """
    return identify_command(reference) if reference.command else identify(reference)
