"""What others took of our processors, from what the kernel counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchcal.machine.roots import Root
from batchcal.measure.race.noise import Foreign, disturbed

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """Two processors in our mask, one beyond it, and clocks that stand until they are moved."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = Root(folder)
        (folder / "proc").mkdir()
        self.now = self.own = 100.0
        self.busy = {0: 50.0, 1: 60.0, 2: 70.0}
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        monkeypatch.setattr("batchcal.measure.race.noise.time.monotonic", lambda: self.now)
        monkeypatch.setattr("batchcal.measure.race.noise.time.process_time", lambda: self.own)
        self.write()

    def pass_by(self, seconds: float, *, own: float, others: float) -> None:
        """Time in which we use `own` seconds of processor, others `others` of ours, and the third one is busy throughout."""
        self.now += seconds
        self.own += own
        self.busy[0] += (own + others) / 2
        self.busy[1] += (own + others) / 2
        self.busy[2] += seconds
        self.write()

    def write(self) -> None:
        lines = [f"cpu{number} {round(busy * TICKS)} 0 0 123456 0 0 0 0 0 0" for number, busy in self.busy.items()]
        self.root.at("/proc/stat").write_text("cpu  1 2 3 4 5 6 7 8 0 0\n" + "\n".join(lines) + "\nintr 1 2\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_an_idle_machine_is_not_disturbed(machine: Machine) -> None:
    foreign = Foreign(machine.root)
    machine.pass_by(1.0, own=1.96, others=0.02)
    share = foreign.share()
    assert share == pytest.approx(0.01)
    assert not disturbed(share)


def test_load_on_one_of_two_processors_is_detected(machine: Machine) -> None:
    foreign = Foreign(machine.root)
    machine.pass_by(1.0, own=1.2, others=0.8)
    share = foreign.share()
    assert share == pytest.approx(0.4)
    assert disturbed(share)


def test_other_load_on_free_processors_does_not_count(machine: Machine) -> None:
    foreign = Foreign(machine.root)
    machine.pass_by(1.0, own=0.9, others=0.5)
    assert foreign.share() == 0.0


def test_the_foreign_share_is_unknown_without_time_or_kernel_statistics(machine: Machine) -> None:
    foreign = Foreign(machine.root)
    machine.pass_by(0.05, own=0.05, others=0.05)
    assert foreign.share() is None
    machine.root.at("/proc/stat").unlink()
    silent = Foreign(machine.root)
    machine.now += 1.0
    assert silent.share() is None
    assert not disturbed(None)
