"""Which kind of machine this is, part by part, as sha256. The same after a reboot and in a new container of the same type.

Left out on purpose: host names, serial numbers, addresses, which processors of many, free memory. No torch is loaded: an
accelerator that driver files do not describe (MIG slices, AMD, Intel, Apple) is known by its driver alone, unless a child asks.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from batchcal.detect.accelerator import drivers, identity
from batchcal.detect.environment import Cpu, Software
from batchcal.detect.torch_answer import TorchAnswer
from batchcal.machine.allocator import AllocatorPolicy, library_digest, without_policy
from batchcal.machine.roots import HERE, Root

if TYPE_CHECKING:
    from batchcal.guard.wire import JSON


def cpu_digest(cpu: Cpu) -> str:
    """Model, instruction sets and how many cores' worth of it: fewer cores make another machine."""
    return _sha256(
        {
            "architecture": cpu.architecture,
            "model": cpu.model,
            "instructions": list(cpu.instructions),
            "cores": f"{cpu.cores.value:.2f}",
            "logical": cpu.logical,
            "physical": cpu.physical,
        }
    )


def os_digest(software: Software) -> str:
    """System with the first two numbers of its kernel, and the C library, which holds the allocator.

    A kernel's third number changes with every security update and does not change how memory is counted.
    """
    match = re.match(r"(\S+ \d+\.\d+)", software.os)
    return _sha256({"os": match.group(1) if match else software.os, "libc": software.libc})


def python_digest(software: Software) -> str:
    return _sha256({"python": software.python, "implementation": platform.python_implementation()})


def torch_digest(software: Software) -> str:
    """torch's version and the allocator's variables. Those that a policy of ours sets are left out: the policy is named in the
    options, and the process that it runs in has them while the one that asks may not."""
    environment = without_policy(software.allocator_environment)
    environment.pop("LD_PRELOAD", None)
    variables: dict[str, JSON] = dict(environment)
    return _sha256({"torch": software.torch, "environment": variables})


def accelerator_digest(
    software: Software,
    environ: Mapping[str, str],
    *,
    root: Root = HERE,
    ask: Callable[[], TorchAnswer] | None = None,
) -> str:
    """Kind, number and driver of the accelerators. `ask` is called only where driver files do not tell (MIG, AMD, Intel, Apple).

    Raises:
        GuardError: `ask` was needed and gave no answer.
    """
    if software.torch.endswith("+cpu"):
        return _sha256("")  # this torch sees none, whatever is there
    known = identity(root, environ)
    if known is not None:
        return _sha256(known)
    if ask is None:
        return _sha256({"drivers": list(drivers(root, environ))})
    devices: list[JSON] = [
        {
            "kind": device.kind,
            "name": device.name,
            "total": device.total_bytes,
            "capability": device.capability,
            "mig": device.mig,
        }
        for device in ask().accelerators
    ]
    return _sha256({"devices": devices})


def allocator_digests(policies: tuple[AllocatorPolicy, ...]) -> dict[str, str]:
    """sha256 of each policy's library, by the policy's name; policies without a library are left out."""
    return {policy.name: digest for policy in policies if (digest := library_digest(policy))}


def _sha256(value: JSON) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
