"""Accelerators: from driver files without torch, and what torch is made to say."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from batchcal.core.units import GIB
from batchcal.detect.accelerator import TorchDevices, describe, drivers, identity, present
from batchcal.machine.roots import Root
from tests.support.machines import Machine

NVIDIA_VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: gcc 12"
OPEN_VERSION = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\nGCC version: gcc 13"


def nvidia(root: Path, models: tuple[str, ...] = ("NVIDIA H200",), *, version: str = NVIDIA_VERSION) -> Machine:
    machine = Machine(root)
    machine.write("/dev/nvidiactl", "")
    machine.write("/proc/driver/nvidia/version", version)
    for index, model in enumerate(models):
        machine.write(f"/dev/nvidia{index}", "")
        machine.write(
            f"/proc/driver/nvidia/gpus/0000:{index:02x}:00.0/information",
            f"Model: \t\t {model}\nIRQ:   \t\t 11\nGPU UUID: \t GPU-{index}-0815",
        )
    return machine


def test_a_machine_without_drivers_has_no_accelerator(tmp_path: Path) -> None:
    Machine(tmp_path)
    assert not present(Root(tmp_path))
    assert identity(Root(tmp_path), {}) == ""


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"/dev/nvidia0": ""}, ("nvidia",)),
        ({"/dev/nvidiactl": ""}, ("nvidia",)),
        ({"/dev/nvidia-caps": ""}, ()),
        ({"/proc/driver/nvidia/version": NVIDIA_VERSION}, ("nvidia",)),
        ({"/dev/dxg": ""}, ("nvidia",)),
        ({"/dev/kfd": ""}, ("amd",)),
        ({"/dev/dri/renderD128": "", "/sys/class/drm/renderD128/device/vendor": "0x8086"}, ("intel",)),
        ({"/dev/dri/renderD128": "", "/sys/class/drm/renderD128/device/vendor": "0x1002"}, ()),
        ({"/dev/dri/card0": "", "/sys/class/drm/card0/device/vendor": "0x8086"}, ()),
    ],
)
def test_driver_files_identify_the_vendor(files: Mapping[str, str], found: tuple[str, ...], tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for name, text in files.items():
        machine.write(name, text)
    assert drivers(Root(tmp_path), {}) == found
    assert present(Root(tmp_path)) == bool(found)


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({}, True),
        ({"CUDA_VISIBLE_DEVICES": "0"}, True),
        ({"CUDA_VISIBLE_DEVICES": ""}, False),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, False),
        ({"HIP_VISIBLE_DEVICES": "-1"}, True),
    ],
)
def test_devices_hidden_by_environment_variables_are_not_present(environ: Mapping[str, str], seen: bool, tmp_path: Path) -> None:
    nvidia(tmp_path)
    assert present(Root(tmp_path), environ) == seen


@pytest.mark.parametrize(
    ("version", "models", "environ", "text"),
    [
        (NVIDIA_VERSION, ("NVIDIA H200",), {}, "nvidia 550.54: 1 of NVIDIA H200"),
        (OPEN_VERSION, ("B", "A"), {}, "nvidia 570.86: 2 of A, B"),
        (OPEN_VERSION, ("A", "A"), {"CUDA_VISIBLE_DEVICES": "1"}, "nvidia 570.86: 1 of A, A"),
        (OPEN_VERSION, ("A",), {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "nvidia 570.86: 1 of A"),
    ],
)
def test_the_accelerator_identity_needs_no_torch_and_omits_serial_numbers(
    version: str, models: tuple[str, ...], environ: Mapping[str, str], text: str, tmp_path: Path
) -> None:
    nvidia(tmp_path, models, version=version)
    assert identity(Root(tmp_path), environ) == text


def test_the_identity_of_mig_devices_is_left_to_torch(tmp_path: Path) -> None:
    machine = nvidia(tmp_path)
    root = Root(tmp_path)
    assert identity(root, {"NVIDIA_VISIBLE_DEVICES": "MIG-1g.10gb"}) is None
    machine.write("/proc/driver/nvidia/capabilities/gpu0/mig/gi3/access", "")
    assert identity(root, {}) is None


def test_the_identity_is_left_to_torch_if_the_driver_hides_version_or_cards(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write("/dev/nvidia0", "")
    assert identity(Root(tmp_path), {}) is None
    machine.write("/dev/kfd", "")
    assert identity(Root(tmp_path), {}) is None


@dataclass
class Properties:
    name: str
    major: int = 9
    minor: int = 0
    uuid: str = "GPU-0815"


class Devices:
    """Devices as torch would present them; one of None does not answer."""

    def __init__(self, kind: str | None, *devices: Properties | None, free: int = 70 * GIB) -> None:
        self._kind, self._devices, self._free = kind, devices, free

    def kind(self) -> str | None:
        return self._kind

    def count(self) -> int:
        return len(self._devices)

    def memory(self, index: int) -> tuple[int, int]:
        if self._devices[index] is None:
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nmore")
        return self._free, 80 * GIB

    def properties(self, index: int) -> object:
        return self._devices[index]


def test_every_device_is_described_with_its_free_memory() -> None:
    devices, problems = describe(Devices("cuda", Properties("NVIDIA H200"), Properties("NVIDIA H200 MIG 1g.18gb")))
    assert [(device.kind, device.index, device.capability, device.mig) for device in devices] == [
        ("cuda", 0, "9.0", False),
        ("cuda", 1, "9.0", True),
    ]
    assert (devices[0].free_bytes, devices[0].total_bytes, devices[0].uuid) == (70 * GIB, 80 * GIB, "GPU-0815")
    assert problems == ()


def test_a_device_that_does_not_answer_does_not_hide_the_others() -> None:
    devices, problems = describe(Devices("cuda", None, Properties("NVIDIA H200")))
    assert [device.index for device in devices] == [1]
    assert problems == ("cuda:0 does not respond: CUDA error: all CUDA-capable devices are busy",)


@pytest.mark.parametrize(("kind", "ours"), [("xpu", "xpu"), ("mps", "mps"), ("hpu", "other")])
def test_other_accelerators_have_no_compute_capability(kind: str, ours: str) -> None:
    devices, _ = describe(Devices(kind, Properties("one")))
    assert (devices[0].kind, devices[0].capability, devices[0].name) == (ours, "", "one")


def test_a_machine_without_an_accelerator_returns_no_devices() -> None:
    assert describe(Devices(None)) == ((), ())


def test_a_device_without_properties_is_named_after_its_kind() -> None:
    class Bare(Devices):
        def properties(self, index: int) -> object:
            return None

    devices, _ = describe(Bare("mps", Properties("ignored")))
    assert (devices[0].name, devices[0].uuid) == ("mps", "")


def torch_with(kind: str | None) -> SimpleNamespace:
    """What of torch is asked, as it is on a machine with two devices of `kind`."""
    properties = SimpleNamespace(name=f"a {kind} card", major=9, minor=0, uuid="u")
    vendor = SimpleNamespace(get_device_properties=lambda index: properties)
    return SimpleNamespace(
        accelerator=SimpleNamespace(
            current_accelerator=lambda check_available: SimpleNamespace(type=kind) if kind else None,
            device_count=lambda: 2,
            get_memory_info=lambda index: (3 * GIB, 4 * GIB),
        ),
        cuda=vendor,
        xpu=vendor,
        mps=SimpleNamespace(recommended_max_memory=lambda: 12 * GIB, driver_allocated_memory=lambda: 2 * GIB),
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cuda", ("a cuda card", 3 * GIB, 4 * GIB, "9.0")),
        ("xpu", ("a xpu card", 3 * GIB, 4 * GIB, "")),
        ("mps", ("mps", 10 * GIB, 12 * GIB, "")),  # shared with the CPU: Metal's own recommendation
        ("hpu", ("hpu", 3 * GIB, 4 * GIB, "")),
    ],
)
def test_each_device_kind_is_described_through_its_own_torch_module(
    kind: str, expected: tuple[str, int, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with(kind))
    devices, problems = describe(TorchDevices())
    assert problems == ()
    assert [(device.name, device.free_bytes, device.total_bytes, device.capability) for device in devices] == [expected] * 2


def test_torch_without_an_accelerator_returns_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with(None))
    assert describe(TorchDevices()) == ((), ())
