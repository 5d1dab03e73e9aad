"""Accelerators: their presence (from driver files, at no cost) and their properties (from torch, only in a child)."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from typing import Final, Literal, Protocol

from batchcal.detect.environment import Accelerator
from batchcal.machine.roots import THIS_MACHINE, Root

Kind = Literal["cuda", "mps", "xpu", "other"]

_INTEL: Final = "0x8086"
_NVIDIA: Final = "/proc/driver/nvidia"
_HIDDEN: Final = {"", "-1", "none", "void", "NoDevFiles"}


def present(root: Root = THIS_MACHINE, environ: Mapping[str, str] | None = None) -> bool:
    """True if there is a driver of an accelerator that is not hidden. A query of torch is then useful, but may find no device."""
    return bool(drivers(root, environ or {}))


def drivers(root: Root, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return vendors with driver files: `nvidia`, `amd`, `intel`, `apple`. Left out: those that the user hid from CUDA or HIP."""
    vendors: list[str] = []
    devices = root.names("/dev")
    # Under WSL the card is /dev/dxg and there is no nvidia file at all.
    nvidia = any(re.fullmatch(r"nvidia(\d+|ctl)", name) for name in devices) or "dxg" in devices
    if (nvidia or root.exists(f"{_NVIDIA}/version")) and not _hidden(environ, "CUDA_VISIBLE_DEVICES"):
        vendors.append("nvidia")
    if "kfd" in devices and not _hidden(environ, "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        vendors.append("amd")
    cards = [name for name in root.names("/dev/dri") if name.startswith("renderD")]
    if any(root.read(f"/sys/class/drm/{card}/device/vendor") == _INTEL for card in cards):
        vendors.append("intel")
    if root.real and platform.system() == "Darwin" and platform.machine() == "arm64":
        vendors.append("apple")
    return tuple(vendors)


def identity(root: Root, environ: Mapping[str, str]) -> str | None:
    """Return a text that is equal for the same kind of accelerators, from driver files alone. None: this needs torch.

    Empty: there are none. Serial numbers are left out: a container may return on another card of the same type.
    """
    vendors = drivers(root, environ)
    if not vendors:
        return ""
    if vendors != ("nvidia",) or _multi_instance(root, environ):
        return None
    version = re.search(r"Kernel Module(?: for \S+)?\s+(\d+\.\d+)", root.read(f"{_NVIDIA}/version") or "")
    models = sorted(filter(None, (_model(root, address) for address in root.names(f"{_NVIDIA}/gpus"))))
    if version is None or not models:
        return None
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    count = len(models) if visible is None else min(len(visible.split(",")), len(models))
    return f"nvidia {version.group(1)}: {count} of {', '.join(models)}"


def _model(root: Root, address: str) -> str:
    match = re.search(r"^Model:\s*(.+)$", root.read(f"{_NVIDIA}/gpus/{address}/information") or "", re.MULTILINE)
    return match.group(1).strip() if match else ""


def _hidden(environ: Mapping[str, str], *names: str) -> bool:
    return any(environ[name].strip() in _HIDDEN for name in names if name in environ)


def _multi_instance(root: Root, environ: Mapping[str, str]) -> bool:
    """True if this process may hold a slice of a card (MIG). No driver file contains its size."""
    named = any(environ.get(name, "").startswith("MIG-") for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"))
    capabilities = f"{_NVIDIA}/capabilities"
    cards = [name for name in root.names(capabilities) if re.fullmatch(r"gpu\d+", name)]
    return named or any(name.startswith("gi") for card in cards for name in root.names(f"{capabilities}/{card}/mig"))


class DeviceSource(Protocol):
    """Queries to torch, as a protocol that tests can implement otherwise."""

    def kind(self) -> str | None:
        """Return `cuda`, `mps`, `xpu`, ... None: no accelerator works."""
        ...

    def count(self) -> int: ...

    def memory(self, index: int) -> tuple[int, int]:
        """Return free and total bytes, over all processes on the device."""
        ...

    def properties(self, index: int) -> object:
        """Return an object with `name`, `total_memory`, `major`, `minor` and `uuid`, or some of them."""
        ...


def describe(source: DeviceSource) -> tuple[tuple[Accelerator, ...], tuple[str, ...]]:
    """Return the devices, and the errors of those that do not respond."""
    kind = source.kind()
    devices: list[Accelerator] = []
    problems: list[str] = []
    for index in range(source.count() if kind else 0):
        try:
            free, total = source.memory(index)
            devices.append(_device(kind or "", index, free, total, source.properties(index)))
        except RuntimeError as error:  # another tenant holds it exclusively, it fell off the bus, ...
            problems.append(
                f"{kind}:{index} does not respond: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            )
    return tuple(devices), tuple(problems)


def _device(kind: str, index: int, free: int, total: int, properties: object) -> Accelerator:
    kinds: dict[str, Kind] = {"cuda": "cuda", "mps": "mps", "xpu": "xpu"}
    name = str(getattr(properties, "name", "") or kind)
    major, minor = getattr(properties, "major", None), getattr(properties, "minor", None)
    return Accelerator(
        kind=kinds.get(kind, "other"),
        index=index,
        name=name,
        total_bytes=total,
        free_bytes=free,
        capability=f"{major}.{minor}" if kind == "cuda" and isinstance(major, int) and isinstance(minor, int) else "",
        mig="MIG " in name,
        uuid=str(getattr(properties, "uuid", "") or ""),
    )


class TorchDevices:
    """Results from torch. Only for a child: this loads torch and opens the devices."""

    def kind(self) -> str | None:
        import torch

        device = torch.accelerator.current_accelerator(check_available=True)
        return None if device is None else device.type

    def count(self) -> int:
        import torch

        return torch.accelerator.device_count()

    def memory(self, index: int) -> tuple[int, int]:
        import torch

        if self.kind() == "mps":
            # CPU and GPU share one memory. Free is the limit that Metal recommends minus the memory that this process holds.
            total = torch.mps.recommended_max_memory()
            return total - torch.mps.driver_allocated_memory(), total
        free, total = torch.accelerator.get_memory_info(index)
        return free, total

    def properties(self, index: int) -> object:
        import torch

        match self.kind():
            case "cuda":
                return torch.cuda.get_device_properties(index)
            case "xpu":
                return torch.xpu.get_device_properties(index)
            case _:
                return None
