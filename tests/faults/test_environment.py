"""Surroundings that lack something: files of /proc, groups, room on the disk, processes, rights; a limit that changed since."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from batchcal.core.errors import GuardError
from batchcal.core.units import MIB
from batchcal.guard.launch import SpawnLauncher, ZygoteLauncher
from batchcal.guard.outcome import Fits, Infrastructure, OutOfMemory, Suspect
from batchcal.machine.allocator import resolve
from batchcal.measure.children.probe import Observation
from tests.faults.conftest import SMALL
from tests.faults.lab import ROOT, Lab, ask, lab
from tests.faults.test_memory import FAR_TOO_LARGE, demand
from tests.support.cgroups import memory_cgroup
from tests.support.guarded import ending_of

pytestmark = [pytest.mark.child, pytest.mark.slow]

as_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")


# What cannot be read


@pytest.fixture
def without(shim: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Paths that hold one of these parts are not there, for anybody."""
    with lab(SMALL, environment={"LD_PRELOAD": str(shim), "FAULT_HIDE": str(request.param)}) as opened:
        yield opened


@pytest.mark.cgroup
@pytest.mark.parametrize(
    "without",
    [
        pytest.param("/clear_refs", id="peaks cannot be reset"),
        pytest.param("/smaps_rollup,/task/,/oom_score_adj", id="as in gVisor"),
        pytest.param("/memory.limit,/memory.stat,/memory.usage,/memory.oom", id="groups cannot be read"),
        pytest.param("/proc/self/mountinfo,/proc/self/cgroup,/proc/vmstat", id="groups cannot be found"),
    ],
    indirect=True,
)
def test_the_fence_holds_when_proc_or_cgroup_files_cannot_be_read(without: Lab) -> None:
    fits = without.measure(ask("plain", 32, budget_bytes=500 * MIB))
    assert isinstance(fits.outcome, Fits), fits.outcome
    assert 200 * MIB < fits.outcome.peak.demand_bytes < 500 * MIB
    assert "rlimit-data" in fits.isolation.fence
    assert isinstance(without.outcome(ask("creeping", 8, budget_bytes=500 * MIB)), OutOfMemory)


@pytest.mark.cgroup
@pytest.mark.parametrize("without", [pytest.param("/status", id="the state of processes")], indirect=True)
def test_the_watchdog_replaces_the_rlimit_when_process_status_cannot_be_read(without: Lab) -> None:
    report: Observation = without.measure(ask("plain", 32, budget_bytes=500 * MIB))
    assert isinstance(report.outcome, Fits), report.outcome
    assert "rlimit-data" in report.isolation.missing
    far = without.outcome(ask("plain", FAR_TOO_LARGE, budget_bytes=500 * MIB))
    assert isinstance(far, OutOfMemory)
    assert far.source == "watchdog"


# What there is too little of


FULL: Final = 'mount -t tmpfs -o size=4m none "$TMPDIR" && exec "$@"'


@as_root
def test_a_task_that_fills_the_disk_fails_its_probe_with_the_reason() -> None:
    with lab(prefix=["unshare", "-m", "sh", "-c", FULL, "sh"]) as opened:
        assert isinstance(opened.outcome(ask("plain", 8)), Fits)
        home = Path(f"/proc/{opened.process.pid}/environ").read_bytes().split(b"\0")
        folder = next(entry for entry in home if entry.startswith(b"TMPDIR=")).removeprefix(b"TMPDIR=").decode()
        outcome = opened.outcome(ask("filling", 8, folder=folder))
        assert isinstance(outcome, Infrastructure), outcome
        assert "could not write its result" in outcome.detail
        assert "No space left on device" in outcome.detail
        Path(f"/proc/{opened.process.pid}/root{folder}/ballast").unlink()
        assert isinstance(opened.outcome(ask("plain", 8)), Fits)


def test_a_missing_temporary_folder_is_an_error_that_suggests_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    for make in (ZygoteLauncher, SpawnLauncher):
        with pytest.raises(GuardError) as raised:
            ending_of(make(resolve("default"), os.environ), "echo")
        assert "No such file or directory" in raised.value.known
        assert "TMPDIR=" in raised.value.try_


PIDS: Final = Path("/sys/fs/cgroup/pids")
_numbers = itertools.count()


@contextlib.contextmanager
def pids_group(most: int) -> Iterator[list[str]]:
    """A command prefix that runs another in a group of at most so many processes and threads."""
    path = PIDS / f"batchcal-test-{os.getpid()}-{next(_numbers)}"
    try:
        path.mkdir()
        (path / "pids.max").write_text(str(most))
    except OSError as error:
        pytest.skip(f"needs root and a writable cgroup v1 pids controller ({error})")
    try:
        yield ["sh", "-c", f'echo $$ > {path}/cgroup.procs && exec "$@"', "sh"]
    finally:
        path.rmdir()


def test_failed_thread_creation_is_a_suspect_outcome() -> None:
    with pids_group(24) as prefix, lab(prefix=prefix) as opened:
        assert isinstance(opened.outcome(ask("plain", 8)), Fits)
        outcome = opened.outcome(ask("many_threads", 8, count=64))
        assert isinstance(outcome, Suspect), outcome
        assert "Thread creation failed" in outcome.detail


def test_workers_that_cannot_start_are_reported() -> None:
    with pids_group(8) as prefix, lab(prefix=prefix) as opened:
        assert isinstance(opened.outcome(ask("plain", 8)), Fits)
        outcome = opened.outcome(ask("plain", 8, workers=6, deadline_s=10))
        assert not isinstance(outcome, Fits | OutOfMemory), outcome
        assert "Resource temporarily unavailable" in outcome.model_dump_json()
        assert isinstance(opened.outcome(ask("plain", 8)), Fits)


# Rights that were given up


REACHABLE: Final = f"""
base={sys.base_prefix}
mkdir "$TMPDIR/python" && mount --bind $base "$TMPDIR/python" &&
mount -t tmpfs -o mode=755 none /root && mkdir -p $base && mount --bind "$TMPDIR/python" $base && exec "$@"
"""
"""Where this python lies in root's own home, it is given a way there, in a mount namespace of its own."""
IN_NAMESPACE: Final = ("unshare", "-m", "sh", "-c", REACHABLE if sys.base_prefix.startswith("/root/") else 'exec "$@"', "sh")
AS_NOBODY: Final = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
SERVE: Final = (
    "import os; os.chown(os.environ['TMPDIR'], 65534, 65534)\n" + AS_NOBODY + "from tests.faults.server import main; main()\n"
)


@as_root
def test_a_parent_that_dropped_root_privileges_can_measure(tmp_path: Path) -> None:
    may = [*IN_NAMESPACE, sys.executable, "-c", AS_NOBODY + "import pydantic, batchcal.detect.detect"]
    if subprocess.run(may, env={**os.environ, "TMPDIR": str(tmp_path)}, cwd=ROOT, check=False).returncode:
        pytest.skip("nobody but root can reach this python")
    with lab(prefix=IN_NAMESPACE, program=["-c", SERVE]) as opened:
        report = opened.measure(ask("plain", 32))
        assert isinstance(report.outcome, Fits), report.outcome
        assert "rlimit-data" in report.isolation.fence
        assert isinstance(opened.outcome(ask("creeping", 8)), OutOfMemory)


@as_root
def test_a_task_that_drops_root_privileges_fails_with_permission_denied(machine: Lab) -> None:
    outcome = machine.outcome(ask("unprivileged", 8))
    assert isinstance(outcome, Infrastructure)
    assert "Permission denied" in outcome.detail
    assert isinstance(machine.outcome(ask("plain", 8)), Fits), "the zygote and its folder are still there"


# What changed


CALIBRATE = """
import sys
from pathlib import Path
from batchcal.detect.detect import detect
from batchcal.measure.obtain import obtain
from batchcal.measure.result import Need
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.options import options
from batchcal.workload.spec.reference import TaskReference
environment = detect()
chosen = options(environment.memory.limit.value, device="cpu")
reference = TaskReference(spec="tests.faults.tasks:plain", directory=sys.argv[1])
obtain(reference, chosen, Need(), environment=environment, output=Path(sys.argv[2]), probe=FakeProbe())
"""
LOAD = """
import sys, batchcal
from batchcal.core.errors import NoCalibration
try:
    batchcal.load_plan(effective_batch=8, path=sys.argv[1])
    print("fresh")
except NoCalibration as error:
    print(error)
"""


@pytest.mark.cgroup
def test_a_lowered_memory_limit_makes_a_calibration_stale(tmp_path: Path) -> None:
    output = str(tmp_path / "calibration.json")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with memory_cgroup(1024 * MIB) as group:
        group.run([sys.executable, "-c", CALIBRATE, str(ROOT), output], env=environment, check=True)
        assert group.run([sys.executable, "-c", LOAD, output], env=environment, check=True).stdout == "fresh\n"
        group.set_limit(700 * MIB)
        told = group.run([sys.executable, "-c", LOAD, output], env=environment, check=True).stdout
    assert "1.00 GiB" in told
    assert "700 MiB" in told


@pytest.mark.cgroup
def test_a_memory_limit_lowered_during_a_calibration_ends_only_probes() -> None:
    with lab(1024 * MIB) as opened:
        before = demand(opened.outcome(ask("plain", 64)))
        assert opened.group is not None
        opened.group.set_limit(700 * MIB)
        assert demand(opened.outcome(ask("plain", 64))) == pytest.approx(before, rel=0.08)
        outcome = opened.outcome(ask("plain", 400))
        assert isinstance(outcome, OutOfMemory), outcome
