"""Too much memory, in every way a task has to ask for it, inside a real limit: the parent learns it, the kernel kills nobody."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcal.core.units import MIB
from batchcal.guard.outcome import Fits, Outcome, OutOfMemory
from batchcal.measure.children.probe import Examination
from tests.faults.conftest import SMALL
from tests.faults.lab import ROOT, Lab, ask, lab, pid_in
from tests.faults.server import Ask
from tests.support.cgroups import memory_cgroup

pytestmark = [pytest.mark.child, pytest.mark.cgroup]

FAR_TOO_LARGE = 5_000


def demand(outcome: Outcome) -> int:
    assert isinstance(outcome, Fits), outcome
    return outcome.peak.demand_bytes


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(ask("plain", FAR_TOO_LARGE), id="far too large at once"),
        pytest.param(ask("creeping", 8), id="slow creep"),
        pytest.param(ask("creeping", 8, step_mib=1), id="slower creep"),
        pytest.param(ask("leaking", 8, samples=30), id="a leak with every step"),
        pytest.param(ask("creeping", 8, mode="eval"), id="in evaluation"),
    ],
)
def test_a_step_above_the_budget_is_stopped_by_the_fence_or_the_watchdog(small: Lab, asked: Ask) -> None:
    report = small.measure(asked)
    assert isinstance(report.outcome, OutOfMemory)
    assert "rlimit-data" in report.isolation.fence
    # Who comes nearer to the limit in small steps may meet the watchdog first.
    words = {"fence": "DefaultCPUAllocator", "watchdog": "the container or machine used"}
    assert words[report.outcome.source] in report.outcome.detail


@pytest.mark.parametrize(
    ("kind", "words"), [("python", "MemoryError"), ("numpy", "ArrayMemoryError"), ("mmap", "Cannot allocate memory")]
)
def test_out_of_memory_errors_of_python_numpy_and_mmap_are_recognized(small: Lab, kind: str, words: str) -> None:
    outcome = small.outcome(ask("out_of_memory_in", FAR_TOO_LARGE, kind=kind))
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "fence"
    assert words in outcome.detail


@pytest.mark.smoke("outcome:out-of-memory")
def test_a_run_over_the_budget_reports_its_peak(small: Lab) -> None:
    budget = 350 * MIB
    outcome = small.outcome(ask("plain", 96, budget_bytes=budget))
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "budget"
    assert outcome.peak is not None
    assert budget < outcome.peak.demand_bytes < budget + 128 * MIB


def test_a_dataset_too_large_to_load_raises_nothing_fits(small: Lab) -> None:
    failed = small.examine(ask("greedy_while_loading"))
    assert not isinstance(failed, Examination)
    assert (failed.type, failed.exit_code) == ("NothingFits", 4)
    assert "a larger container" in failed.try_


def test_memory_of_the_dataset_counts_as_demand(machine: Lab) -> None:
    plain = demand(machine.outcome(ask("plain", 16)))
    holding = demand(machine.outcome(ask("big_arrays", 16, mib=200)))
    # The same size again may hold 16 MiB more or less: glibc.
    assert 170 * MIB < holding - plain < 230 * MIB


def test_a_memory_mapped_file_does_not_count_as_demand(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.write(b"x" * (400 * MIB))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or its pages would be those of our own group
    with lab(640 * MIB) as opened:
        plain = demand(opened.outcome(ask("plain", 32)))
        mapped = demand(opened.outcome(ask("mapped", 32, path=str(path))))
        assert opened.group is not None
        stat = opened.group.stat()
    assert stat["total_inactive_file"] + stat["total_active_file"] > 150 * MIB
    assert mapped == pytest.approx(plain, abs=100 * MIB)  # glibc's own spread, and far less than the file


def test_memory_of_the_parent_does_not_count_in_the_peak_of_a_child(machine: Lab) -> None:
    plain = demand(machine.outcome(ask("plain", 32)))
    with lab(environment={"LAB_BALLAST_MIB": "400"}) as opened:
        beside_ballast = demand(opened.outcome(ask("plain", 32)))
    assert beside_ballast < plain + 64 * MIB


def test_the_demand_of_a_batch_size_does_not_depend_on_earlier_probes(machine: Lab) -> None:
    sizes = (16, 64, 128)
    forwards = [demand(machine.outcome(ask("plain", size))) for size in sizes]
    backwards = [demand(machine.outcome(ask("plain", size))) for size in reversed(sizes)]
    # glibc repeats itself within 5 to 8 % only, in a fresh process too.
    assert forwards == pytest.approx(backwards[::-1], abs=48 * MIB)


NEIGHBOUR = """
import time
held = []
for _ in range(75):
    held.append(bytes([1]) * (4 << 20))
    time.sleep(0.004)
time.sleep(30)
"""


def test_memory_growth_of_another_process_ends_only_the_probe(tmp_path: Path) -> None:
    with lab(1024 * MIB) as opened:
        assert isinstance(opened.outcome(ask("plain", 4)), Fits)
        assert opened.group is not None
        opened.begin(ask("slow", 450, seconds=10.0, tell=str(tmp_path / "tell")))
        pid_in(tmp_path / "tell")
        with opened.group.popen([sys.executable, "-c", NEIGHBOUR]) as neighbour:
            outcome = opened.report().outcome
            alive = neighbour.poll() is None
            neighbour.kill()
    assert alive
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "watchdog"


UNWATCHED = """
import json, sys
from contextlib import closing
from batchcal.machine.cgroup import memory_meter
from batchcal.guard.classify import classify
from batchcal.guard.run import ChildLimits
from tests.support.guarded import ending_of, launcher

class Blind:
    limit_bytes = 1 << 62
    def __init__(self, meter): self.meter = meter
    def hard_bytes(self): return 0
    def swap_bytes(self): return 0
    def oom_kills(self): return self.meter.oom_kills()

ballast = b"x" * (int(sys.argv[1]) << 20)
with closing(memory_meter()) as meter, launcher("spawn") as opened:
    ending = ending_of(opened, "hold", ChildLimits(), Blind(meter), bytes=900 << 20, arm=False)
    again = ending_of(opened, "echo", ChildLimits(), Blind(meter), number=1)
print(json.dumps({"outcome": classify(ending, None).model_dump(), "again": again.returned, "kills": ending.oom_kills}))
"""


@pytest.mark.smoke("outcome:out-of-memory")
@pytest.mark.parametrize("ballast_mib", [20, 200])
def test_without_a_fence_the_kernel_kills_the_child_and_not_the_parent(ballast_mib: int) -> None:
    with memory_cgroup(320 * MIB) as group:
        done = group.run([sys.executable, "-c", UNWATCHED, str(ballast_mib)], cwd=ROOT)
        kills = group.oom_kills()
    assert done.returncode == 0, done.stderr
    assert kills == 1
    assert '"source": "kernel"' in done.stdout
    assert '"again": {"number": 1}' in done.stdout


@pytest.mark.parametrize("limit_mib", [120, 200, 300])
def test_no_child_is_started_when_torch_alone_exceeds_the_memory_limit(limit_mib: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "batchcal", "calibrate", "tests.faults.tasks:plain", "--time-limit", "10s"]
    with memory_cgroup(limit_mib * MIB) as group:
        done = group.run([*command, "--output", str(tmp_path / "calibration.json")], cwd=ROOT)
        kills = group.oom_kills()
    assert kills == 0
    assert done.returncode == 4, done.stderr
    assert "nothing fits: a process with torch takes about" in done.stderr


@pytest.fixture(params=["refuse", "ignore"])
def unlimited(request: pytest.FixtureRequest, shim: Path) -> Iterator[Lab]:
    """Without the first line of the fence: prlimit fails, or it succeeds and the kernel keeps no limit."""
    with lab(SMALL, environment={"LD_PRELOAD": str(shim), "FAULT_PRLIMIT": str(request.param)}) as opened:
        yield opened


def test_without_rlimits_the_watchdog_stops_the_probe_and_the_record_shows_it(unlimited: Lab) -> None:
    assert isinstance(unlimited.outcome(ask("plain", 32)), Fits)
    for task in ("plain", "creeping"):
        report = unlimited.measure(ask(task, FAR_TOO_LARGE))
        assert isinstance(report.outcome, OutOfMemory)
        assert report.outcome.source == "watchdog"
        assert "rlimit-data" in report.isolation.missing
        assert "rlimit-data" not in report.isolation.fence


@pytest.mark.slow
def test_the_kernel_kills_none_of_many_random_probes() -> None:
    dice = random.Random(7)
    with lab(700 * MIB) as opened:
        kinds: set[str] = set()
        for _ in range(24):
            task = dice.choice(("plain", "plain", "plain", "creeping", "leaking", "big_arrays"))
            batch, workers = int(2 ** dice.uniform(1, 11)), dice.choice((0, 0, 1))
            asked = ask(task, batch, workers=workers)
            if task == "big_arrays":
                asked = ask(task, batch, workers=workers, mib=dice.randrange(600))
            kinds.add(opened.outcome(asked).kind)
    assert kinds == {"fits", "out-of-memory"}
