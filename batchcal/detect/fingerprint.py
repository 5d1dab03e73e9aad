"""The kind of this machine, part by part, as sha256. The same after a reboot and in a new container of the same type.

Left out on purpose: host names, serial numbers, addresses, the selection of processors, free memory. torch is not loaded.
Accelerators that driver files do not describe (MIG slices, AMD, Intel, Apple) are identified by their driver alone, unless a
child queries torch.
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
from batchcal.machine.roots import THIS_MACHINE, Root

if TYPE_CHECKING:
    from batchcal.guard.channel.wire import JSON


def cpu_digest(cpu: Cpu) -> str:
    """Digest of the model, the instruction sets and the usable cores: fewer cores make another machine."""
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
    """Digest of the system with the first two numbers of its kernel, and of the C library, which contains the allocator.

    The third number of a kernel changes with every security update and does not affect how memory is counted.
    """
    match = re.match(r"(\S+ \d+\.\d+)", software.os)
    return _sha256({"os": match.group(1) if match else software.os, "libc": software.libc})


def python_digest(software: Software) -> str:
    return _sha256({"python": software.python, "implementation": platform.python_implementation()})


def torch_digest(software: Software) -> str:
    """Digest of torch's version and the allocator's variables. Variables that a policy of batchcal sets are left out: the options
    name the policy, and its process has these variables while the process that computes the digest may not."""
    environment = without_policy(software.allocator_environment)
    environment.pop("LD_PRELOAD", None)
    variables: dict[str, JSON] = dict(environment)
    return _sha256({"torch": software.torch, "environment": variables})


def accelerator_digest(
    software: Software,
    environ: Mapping[str, str],
    *,
    root: Root = THIS_MACHINE,
    query: Callable[[], TorchAnswer] | None = None,
) -> str:
    """Digest of kind, number and driver of accelerators. `query` is called only if driver files lack them (MIG, AMD, ...).

    Raises:
        GuardError: `query` was needed and returned no result.
    """
    if software.torch.endswith("+cpu"):
        return _sha256("")  # this torch finds no accelerator, whatever the machine has
    identifier = identity(root, environ)
    if identifier is not None:
        return _sha256(identifier)
    if query is None:
        return _sha256({"drivers": list(drivers(root, environ))})
    devices: list[JSON] = [
        {
            "kind": device.kind,
            "name": device.name,
            "total": device.total_bytes,
            "capability": device.capability,
            "mig": device.mig,
        }
        for device in query().accelerators
    ]
    return _sha256({"devices": devices})


def allocator_digests(policies: tuple[AllocatorPolicy, ...]) -> dict[str, str]:
    """Return the sha256 of each policy's library, by the policy's name. Policies without a library are left out."""
    return {policy.name: digest for policy in policies if (digest := library_digest(policy))}


def _sha256(value: JSON) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
