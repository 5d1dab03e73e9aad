"""Cores: the processor time that this process may use, and the hardware behind it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from typing import Final

from batchcal.detect.bounds import Bound, least_cores
from batchcal.detect.environment import Cpu
from batchcal.machine.hierarchy import Chain, locate
from batchcal.machine.roots import Root

# fmt: off
_INSTRUCTIONS: Final = frozenset({
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "fphp", "bf16", "i8mm", "sve", "sve2", "sme",
})
# fmt: on
"""Flags by which oneDNN and ATen choose their kernels. The complete list of flags would change with the version of Linux."""
_VARIABLES: Final = {
    "SLURM_CPUS_PER_TASK": "Slurm assigned this number to the task",
    "PYTHON_CPU_COUNT": "the variable sets this number for Python",
}
_SYS_CPU: Final = "/sys/devices/system/cpu"


def read_cpu(root: Root, environ: Mapping[str, str], notes: list[str]) -> Cpu:
    """Read the processors behind `root`. Values that cannot be read are reported in `notes`."""
    visible = visible_processors(root)
    mask, mask_from = _mask(root)
    if not mask:
        mask, mask_from = frozenset(range(visible)), "os.cpu_count()"
        notes.append("the affinity mask could not be read: every visible processor was counted")
    bounds = [Bound(value=len(mask), learned_from=mask_from, because="the number of processors in the affinity mask")]
    cpuset = _cpuset(root)
    if cpuset is not None:
        bounds.append(cpuset)
    quotas = quota_bounds(root)
    bounds += [*quotas, *_variable_bounds(environ, notes)]
    return Cpu(
        cores=least_cores(bounds, lambda cores: f"{cores:g}"),
        logical=len(mask),
        visible=visible,
        physical=_physical(root, mask, notes),
        quota_cores=min((quota.value for quota in quotas), default=None),
        model=_model(root, environ),
        architecture=platform.machine(),
        instructions=_instructions(root),
    )


def parse_list(text: str) -> frozenset[int]:
    """Parse `0-3,8` to {0, 1, 2, 3, 8}. Empty: the text has another form."""
    numbers: set[int] = set()
    for part in filter(None, text.replace("\n", ",").split(",")):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            return frozenset()
        numbers.update(range(int(match.group(1)), int(match.group(2) or match.group(1)) + 1))
    return frozenset(numbers)


def visible_processors(root: Root) -> int:
    """Return the number of processors for programs that read neither the mask nor the quota."""
    online = parse_list(root.read(f"{_SYS_CPU}/online") or "")
    listed = re.findall(r"^processor\s*:", root.read("/proc/cpuinfo") or "", re.MULTILINE)
    return len(online) or len(listed) or os.cpu_count() or 1


def _mask(root: Root) -> tuple[frozenset[int], str]:
    match = re.search(r"^Cpus_allowed_list:\s*(\S+)", root.read("/proc/self/status") or "", re.MULTILINE)
    mask = parse_list(match.group(1)) if match else frozenset()
    if not mask and root.real and hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0)), "sched_getaffinity"
    return mask, "/proc/self/status Cpus_allowed_list"


def _cpuset(root: Root) -> Bound | None:
    chain = locate("cpuset", root)
    names = ("cpuset.cpus.effective",) if chain and chain.version == "v2" else ("cpuset.effective_cpus", "cpuset.cpus")
    for level in chain.levels if chain else ():
        for name in names:
            processors = parse_list(root.read(f"{level}/{name}") or "")
            if processors:  # the effective set of a level is within those of all above it
                return Bound(
                    value=len(processors), learned_from=f"{level}/{name}", because="the number of processors in the cpuset"
                )
    return None


def quota_bounds(root: Root) -> list[Bound]:
    """Return the CPU quotas of every level, in cores. A quota of 1.5 stays 1.5."""
    chain = locate("cpu", root)
    bounds: list[Bound] = []
    for level in chain.levels if chain else ():
        cores, name = _quota(chain, level, root) if chain else (None, "")
        if cores is not None:
            bounds.append(
                Bound(
                    value=cores,
                    learned_from=f"{level}/{name}",
                    because="the scheduler pauses the group when its CPU time of a period is used up",
                )
            )
    return bounds


def _quota(chain: Chain, level: str, root: Root) -> tuple[float | None, str]:
    if chain.version == "v2":
        words = (root.read(f"{level}/cpu.max") or "").split()
        quota, period = (_integer(words[0]), _integer(words[1])) if len(words) == 2 else (None, None)
        name = "cpu.max"
    else:
        quota, period = root.number(f"{level}/cpu.cfs_quota_us"), root.number(f"{level}/cpu.cfs_period_us")
        name = "cpu.cfs_quota_us"
    return (quota / period if quota is not None and quota > 0 and period else None), name


def _variable_bounds(environ: Mapping[str, str], notes: list[str]) -> list[Bound]:
    bounds: list[Bound] = []
    for name, because in _VARIABLES.items():
        text = environ.get(name, "").strip()
        count = _integer(text)
        if count:
            bounds.append(Bound(value=count, learned_from=name, because=because))
        elif text and text != "default":  # PYTHON_CPU_COUNT=default means no override
            notes.append(f"{name}={text!r} is not a number of processors and was ignored")
    return bounds


def _physical(root: Root, mask: frozenset[int], notes: list[str]) -> int:
    cores = {root.read(f"{_SYS_CPU}/cpu{number}/topology/thread_siblings_list") for number in mask} - {None, ""}
    if cores:
        return len(cores)
    listed = _cores_of_cpuinfo(root, mask)
    if listed:
        return listed
    if root.real:
        import psutil  # 12 ms, for systems without /proc and /sys only

        cores_of_psutil = psutil.cpu_count(logical=False)
        if cores_of_psutil:
            return min(cores_of_psutil, len(mask))
    notes.append("the processor's topology could not be read: each logical processor was counted as a core")
    return len(mask)


def _cores_of_cpuinfo(root: Root, mask: frozenset[int]) -> int:
    cores: set[tuple[str, str]] = set()
    for block in (root.read("/proc/cpuinfo") or "").split("\n\n"):
        fields = _fields(block)
        if _integer(fields.get("processor", "")) in mask and "core id" in fields:
            cores.add((fields.get("physical id", ""), fields["core id"]))
    return len(cores)


def _model(root: Root, environ: Mapping[str, str]) -> str:
    for block in (root.read("/proc/cpuinfo") or "").split("\n\n"):
        fields = _fields(block)
        name = fields.get("model name") or fields.get("Hardware") or fields.get("cpu model")
        if name:
            return name
        if "CPU implementer" in fields:  # Arm names its parts by number only
            return f"Arm {fields['CPU implementer']} part {fields.get('CPU part', '?')}"
    # platform.processor() would start a process. The variable is that of Windows.
    return environ.get("PROCESSOR_IDENTIFIER") or platform.machine()


def _instructions(root: Root) -> tuple[str, ...]:
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", root.read("/proc/cpuinfo") or "", re.MULTILINE)
    return tuple(sorted(_INSTRUCTIONS.intersection(match.group(1).split()))) if match else ()


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, separator, value in pairs if separator}


def _integer(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
