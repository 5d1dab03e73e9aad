"""Apply a plan in this process: threads now, the allocator now or by a restart of the process."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from typing import Final

from batchcal.machine.allocator import RETAIN_MMAP_THRESHOLD, PolicyName, apply_mallopt, in_force, resolve
from batchcal.plan.plan import Plan
from batchcal.runtime.threads import apply_threads

REEXEC_VARIABLE: Final = "BATCHCAL_REEXEC"
"""`PID:POLICY` of a process that has restarted itself, which keeps its id. Children have other ids and may restart themselves."""


class AllocatorNotInForce(UserWarning):
    """The plan was measured under another allocator than that of this process, so its peak may differ."""


@dataclass(frozen=True)
class Applied:
    """Settings that are in force now."""

    allocator: PolicyName
    notices: tuple[str, ...] = ()
    """Settings of the plan that are not in force."""


def apply(plan: Plan) -> Applied:
    """Use the plan's threads and allocator from now on. Call it first, before torch runs.

    `retain` takes effect at once. Every other policy must be set when a process starts. A process that was started without it
    keeps its own policy, with a warning: `batchcal exec -- python train.py` starts it correctly, and `batchcal.load_plan`
    makes plans for the allocator of the process.

    Raises:
        UsageError: torch already uses another number of threads between operators, or the plan names an allocator that this
            system does not have.
    """
    allocator, notices = _allocator(plan.allocator)
    for notice in notices:
        warnings.warn(notice, AllocatorNotInForce, stacklevel=2)
    apply_threads(plan.intra_op_threads, plan.interop_threads)
    return Applied(allocator, notices)


def reexec_for(plan: Plan) -> None:
    """Restart this process, with the same command and the same id, if the plan's allocator needs that.

    Returns if no restart is needed: the policy is in force, `apply` can put it into force, or the process was already restarted
    for it (`apply` then warns that this had no effect).

    Raises:
        UsageError: this system does not have the plan's allocator.
    """
    mark = f"{os.getpid()}:{plan.allocator}"
    if in_force() == plan.allocator or os.environ.get(REEXEC_VARIABLE) == mark:
        return
    policy = resolve(plan.allocator)
    if policy.kind == "mallopt" and in_force() == "default":
        return
    environment = policy.process_environment(os.environ) | {REEXEC_VARIABLE: mark}
    # Buffered output would be lost.
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _allocator(wanted: PolicyName) -> tuple[PolicyName, tuple[str, ...]]:
    current = in_force()
    if current == wanted:
        return current, ()
    if resolve(wanted).kind == "mallopt" and current == "default":
        threshold = apply_mallopt()
        if threshold >= RETAIN_MMAP_THRESHOLD:
            return in_force(), ()
        return in_force(), (f"this C library keeps only blocks up to {threshold} bytes: {wanted} is only partly in force",)
    return current, (
        f"the plan was measured with the allocator {wanted}, but this process runs with {current}:"
        " start it with `batchcal exec -- COMMAND`",
    )
