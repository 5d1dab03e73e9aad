"""`batchcal exec`: another program takes this process, inside the plan. Real shells, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchcal.calibration.store import save
from batchcal.machine.allocator import RETAIN_MMAP_THRESHOLD
from tests.cli.conftest import Calibrated
from tests.support.calibrations import a_calibration

pytestmark = pytest.mark.child

SIGPIPE_BIT = 1 << (signal.SIGPIPE - 1)


def execute(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchcal", "exec", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def environment_of(*arguments: str, **environment: str) -> dict[str, str]:
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    done = execute(*arguments, "--", sys.executable, "-c", code, **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.smoke
def test_the_command_receives_the_plan_in_its_environment(calibrated: Calibrated, project: Path) -> None:
    calibrated()
    seen = environment_of("--effective-batch", "1000", OMP_NUM_THREADS="7", BATCHCAL_PLAN_OF_LAST_WEEK="1")
    assert seen["BATCHCAL_PLAN_MICRO_BATCHES"] == "500,500"
    assert seen["BATCHCAL_PLAN_STATUS"] == "derived"
    assert seen["OMP_NUM_THREADS"] == seen["BATCHCAL_PLAN_INTRA_OP_THREADS"] != "7"
    assert seen["BATCHCAL_CALIBRATION"] == str(project / ".batchcal" / "calibration.json")
    assert "BATCHCAL_PLAN_OF_LAST_WEEK" not in seen


def test_exec_requires_a_choice_between_several_calibrations(calibrated: Calibrated, project: Path) -> None:
    first = calibrated()
    (project / "batchcal.toml").write_text("[plan]\neffective_batch = 96\n")
    other = first.task.model_copy(update={"spec": "other.py:task"})
    save(first.model_copy(update={"task": other}), project / ".batchcal" / "other.task-00000000.json")
    refused = execute("--", "true")
    assert refused.returncode == 2
    assert "this project has 2 calibrations" in refused.stderr
    started = execute("--on-stale", "default", "--", "echo", "ran")
    assert (started.returncode, started.stdout) == (0, "ran\n")
    assert "starts without a plan" in started.stderr
    seen = environment_of("--calibration", "task.py:task")
    assert seen["BATCHCAL_CALIBRATION"] == str(project / ".batchcal" / "calibration.json")


def test_exec_logs_the_plan_in_two_lines_and_leaves_stdout_to_the_command(calibrated: Calibrated) -> None:
    calibrated()
    done = execute("--effective-batch", "1000", "--", "echo", "--json", "-q")
    assert done.stdout == "--json -q\n"
    loader, training = done.stderr.splitlines()[-2:]
    assert loader.startswith("INFO dataloader_config num_workers=0 persistent_workers=false")
    assert training.startswith("INFO training_config device=cpu threads_intra=")
    assert " batch_size=500 accumulation_steps=2 effective_batch=1000" in training
    assert execute("--quiet", "echo", "hello").stderr == ""


def test_the_started_script_loads_the_plan_of_the_selected_allocator(calibrated: Calibrated) -> None:
    finding = a_calibration().findings[0]
    calibrated(findings=(finding, finding.model_copy(update={"allocator": "retain"})))
    code = "import batchcal; print(batchcal.load_plan(effective_batch=1000).allocator)"
    there = execute("--allocator", "retain", "--", sys.executable, "-c", code)
    assert there.stdout == "retain\n", there.stderr
    seen = environment_of("--allocator", "retain")
    assert seen["MALLOC_MMAP_THRESHOLD_"] == str(RETAIN_MMAP_THRESHOLD)
    # A policy that somebody else had set would not be the plan's.
    assert "MALLOC_MMAP_THRESHOLD_" not in environment_of("--allocator", "default", MALLOC_MMAP_THRESHOLD_="1")


def test_the_command_keeps_the_process_id_and_its_exit_code(calibrated: Calibrated) -> None:
    calibrated()
    command = [sys.executable, "-m", "batchcal", "exec", "-q", "--", "sh", "-c", "echo $$; read line; exit 7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate("go\n", timeout=60)
    assert (out.strip(), process.returncode) == (str(process.pid), 7)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_only_the_command(number: signal.Signals, calibrated: Calibrated) -> None:
    calibrated()
    command = [sys.executable, "-m", "batchcal", "exec", "-q", "--", "sh", "-c", "echo ready; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (-number, "")


def test_the_command_does_not_inherit_the_ignored_sigpipe_of_python(calibrated: Calibrated) -> None:
    calibrated()
    ignored = execute("-q", "--", "sed", "-n", "s/^SigIgn:\t//p", "/proc/self/status")
    assert int(ignored.stdout, 16) & SIGPIPE_BIT == 0


def test_the_command_inherits_signals_ignored_by_the_shell(calibrated: Calibrated) -> None:
    calibrated()
    script = f"trap '' INT; exec {sys.executable} -m batchcal exec -q -- sed -n 's/^SigIgn:\t//p' /proc/self/status"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout, 16) & (1 << (signal.SIGINT - 1))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["--", "no-such-program"], "error: 'no-such-program' cannot be started: no such file or directory"),
        (["--", "/etc/passwd"], "error: '/etc/passwd' cannot be started: permission denied"),
        ([], "error: there is no command to start"),
        (["--on-stale", "guess", "--", "true"], "error: --on-stale 'guess' is not valid"),
    ],
)
def test_a_command_that_cannot_start_is_a_usage_error(command: list[str], told: str, calibrated: Calibrated) -> None:
    calibrated()
    done = execute(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_the_command_does_not_start_without_a_calibration(project: Path) -> None:
    done = execute("--", "touch", "started")
    assert done.returncode == 3
    assert "try: batchcal calibrate" in done.stderr
    assert not (project / "started").exists()


def test_on_stale_default_starts_the_command_without_a_plan(calibrated: Calibrated, project: Path) -> None:
    calibrated()
    (project / "task.py").write_text((project / "task.py").read_text() + "\nCHANGED = True\n")
    assert execute("--", "true").returncode == 3
    done = execute(
        "--on-stale=default", "--", "sh", "-c", 'echo "$OMP_NUM_THREADS$BATCHCAL_PLAN_MICRO_BATCH"', OMP_NUM_THREADS="5"
    )
    assert (done.returncode, done.stdout) == (0, "5\n")
    assert "starts without a plan" in done.stderr


@pytest.mark.slow
def test_on_stale_recalibrate_starts_the_command_with_a_new_plan(calibrated: Calibrated, project: Path) -> None:
    calibrated()
    (project / "task.py").write_text((project / "task.py").read_text() + "\nCHANGED = True\n")
    seen = environment_of("--on-stale=recalibrate")
    assert seen["BATCHCAL_PLAN_MICRO_BATCH"] == "96"  # the whole of its dataset, and not what the old file says
    again = execute("--on-stale=recalibrate", "--", "true")
    assert "probe_started" not in again.stderr
