"""The fingerprint of a machine, a task and options: what must be the same for a calibration to hold."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from typing import Final

from batchcal.calibration.schema import Fingerprint, Options
from batchcal.core.canonical import dumps
from batchcal.core.errors import UsageError
from batchcal.detect.environment import Environment
from batchcal.detect.fingerprint import accelerator_digest, allocator_digests, cpu_digest, os_digest, python_digest, torch_digest
from batchcal.detect.torch_answer import TorchAnswer
from batchcal.machine.allocator import AUTO, available, resolve
from batchcal.workload.identity import TaskIdentity

NOT_IDENTIFYING: Final = frozenset(
    {"time_limit_s", "max_probes", "effective_batch", "seed", "objective", "accept_inexact", "min_micro_batch"}
)
"""Options that are left out: a longer search does not make a shorter one's answer wrong, a plan is made for any effective batch,
and the largest samples are the same for every seed."""


def fingerprint_of(
    environment: Environment,
    task: TaskIdentity,
    options: Options,
    *,
    environ: Mapping[str, str],
    ask_child: Callable[[], TorchAnswer] | None = None,
) -> Fingerprint:
    """What `options` for `task` would be measured as, here and now. Loads no torch; milliseconds.

    Args:
        ask_child: asks torch in a child, only where driver files do not tell what accelerators there are.
    """
    policies = {policy.name: policy for policy in available()}
    if options.allocator not in policies and options.allocator != AUTO:
        with contextlib.suppress(UsageError):  # gone since: its digest is missing, which is what a reader must see
            policies[options.allocator] = resolve(options.allocator)
    return Fingerprint(
        cpu=cpu_digest(environment.cpu),
        os=os_digest(environment.software),
        python=python_digest(environment.software),
        torch=torch_digest(environment.software),
        accelerator=accelerator_digest(environment.software, environ, ask=ask_child),
        task=task.digest,
        options=options_digest(options),
        memory_limit_bytes=environment.memory.limit.value,
        allocators=allocator_digests(tuple(policies.values())),
    )


def options_digest(options: Options) -> str:
    """sha256 over what changes the answer."""
    return hashlib.sha256(dumps(options.model_dump(mode="json", exclude=set(NOT_IDENTIFYING)))).hexdigest()
