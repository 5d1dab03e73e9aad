"""Fingerprint of a machine, a task and options. It must be the same for a calibration to be valid."""

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
from batchcal.workload.spec.identity import TaskIdentity

NOT_IDENTIFYING: Final = frozenset(
    {"time_limit_s", "max_probes", "effective_batch", "seed", "objective", "accept_inexact", "min_micro_batch"}
)
"""Options that are left out. A longer search does not invalidate the result of a shorter one, a plan can be made for any
effective batch (a larger one is divided), and the largest samples are the same for every seed."""


def fingerprint_of(
    environment: Environment,
    task: TaskIdentity,
    options: Options,
    *,
    environ: Mapping[str, str],
    query_child: Callable[[], TorchAnswer] | None = None,
) -> Fingerprint:
    """Return the fingerprint of a measurement of `task` with `options`, here and now. Takes milliseconds and does not load torch.

    Args:
        query_child: queries torch in a child process, only if driver files do not show the accelerators.
    """
    policies = {policy.name: policy for policy in available()}
    if options.allocator not in policies and options.allocator != AUTO:
        with contextlib.suppress(UsageError):  # it is gone: readers must see that its digest is missing
            policies[options.allocator] = resolve(options.allocator)
    return Fingerprint(
        cpu=cpu_digest(environment.cpu),
        os=os_digest(environment.software),
        python=python_digest(environment.software),
        torch=torch_digest(environment.software),
        accelerator=accelerator_digest(environment.software, environ, query=query_child),
        task=task.digest,
        options=options_digest(options),
        memory_limit_bytes=environment.memory.limit.value,
        allocators=allocator_digests(tuple(policies.values())),
    )


def options_digest(options: Options) -> str:
    """Return the sha256 over the options that change the result."""
    return hashlib.sha256(dumps(options.model_dump(mode="json", exclude=set(NOT_IDENTIFYING)))).hexdigest()
