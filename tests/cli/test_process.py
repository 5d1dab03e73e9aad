"""The command as a process: exit codes, pipes, signals, shells, what it loads."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchcal.calibration.keys import find_trust
from batchcal.calibration.locate import calibrations_in
from batchcal.calibration.schema import Calibration
from batchcal.calibration.store import Loaded, load
from tests.cli.conftest import Calibrated

pytestmark = pytest.mark.child

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
SLOW = """\
import time
import torch
import batchcal


def task():
    model = torch.nn.Linear(8, 1)

    def loss(model, batch):
        time.sleep(0.2)
        return model(batch).square().mean()

    data = torch.randn(64, 8)
    return batchcal.Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=data, loss=loss)
"""


QUICK = {"BATCHCAL_ALLOCATOR": "default", "BATCHCAL_OBJECTIVE": "memory"}
"""No races where they are not what is tested."""


def batchcal(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchcal", *arguments],
        env={**os.environ, **QUICK, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def kept_in(project: Path) -> Calibration:
    """The only calibration of the project."""
    (path,) = calibrations_in(project)
    loaded = load(path, trust=find_trust(os.environ))
    assert isinstance(loaded, Loaded)
    return loaded.calibration


def sh(script: str, shell: str = "sh") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shell, "-c", script], env={**os.environ, "PATH": PATH}, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.smoke
def test_detect_prints_its_values_as_a_log_line_and_json(calibrated: Calibrated) -> None:
    calibrated()
    done = batchcal("detect", "--json")
    assert done.returncode == 0
    environment = json.loads(done.stdout)
    line = done.stderr.strip()
    assert re.fullmatch(
        r"INFO resource_limits cpu_cores=\S+ memory_mb=\d+ optimal_threads=\d+ optimal_workers=\d+ max_batch_size=512.*", line
    )
    assert f"memory_mb={environment['memory']['limit']['value'] // 2**20} " in line
    table = batchcal("detect", "-q")
    assert table.stderr == ""
    source = environment["memory"]["limit"]["learned_from"]
    assert re.sub(r"\s+", "", source) in re.sub(r"\s+", "", table.stdout), "folded, but whole"


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_plan_is_evaluated_by_a_real_shell(shell: str, calibrated: Calibrated) -> None:
    calibrated()
    done = sh('set -eu; eval "$(batchcal plan --effective-batch 1000 --format sh)"; echo $BATCHCAL_PLAN_MICRO_BATCHES', shell)
    assert (done.returncode, done.stdout) == (0, "500,500\n")


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(("arguments", "code"), [("", 3), ("--bogus", 2), ("--effective-batch none", 2)])
def test_a_failing_plan_stops_a_script_that_evaluates_it(shell: str, arguments: str, code: int, project: Path) -> None:
    done = sh(f'set -e; eval "$(batchcal plan --format sh {arguments})"; echo went on', shell)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")


def test_a_closed_pipe_ends_the_command_without_an_error(calibrated: Calibrated) -> None:
    calibrated()
    # The reader is gone before the first byte is written.
    done = sh('batchcal show --why | true; echo "end"')
    assert (done.stdout, done.stderr) == ("end\n", "")
    piped = sh('(batchcal show --why; echo "exit $?" >&2) | head -n 1 > /dev/null')
    assert piped.stderr == "exit 0\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_at_stdout_is_reported(calibrated: Calibrated) -> None:
    calibrated()
    done = sh("batchcal show > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the result could not be written to stdout\n note: No space left on device")


def test_an_ascii_terminal_gets_plain_characters(calibrated: Calibrated) -> None:
    calibrated()
    done = batchcal("show", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "# result" in done.stdout


def test_colors_are_printed_only_on_terminals_that_allow_them(calibrated: Calibrated) -> None:
    calibrated()
    assert "\x1b[" in on_a_terminal("show", TERM="xterm-256color")
    assert "\x1b[3" not in on_a_terminal("show", TERM="xterm-256color", NO_COLOR="1")
    assert "\x1b" not in batchcal("show", FORCE_COLOR="1").stdout
    assert "\x1b[1;31merror:" in on_a_terminal("show", "absent.json", TERM="xterm")
    assert "\x1b" not in on_a_terminal("show", "absent.json", TERM="xterm", NO_COLOR="1")


def test_progress_is_live_on_a_terminal_and_line_based_in_a_pipe(project: Path) -> None:
    dry = ("calibrate", "--dry-run", "--memory-limit", "1GiB")
    live = on_a_terminal(*dry, TERM="xterm", CI="")
    assert "calibrating task.py:task on cpu" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", live)
    assert "probe_started" not in live
    assert "probe_started sequence=1" in on_a_terminal(*dry, TERM="xterm", CI="true")
    assert "probe_started sequence=1" in batchcal(*dry).stderr


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a person sees: stdout and stderr are one terminal."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "batchcal", *arguments],
        env={**os.environ, **environment},
        stdin=side,
        stdout=side,
        stderr=side,
        close_fds=True,
    )
    os.close(side)
    seen = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        seen += piece
    os.close(main)
    process.wait(timeout=60)
    return seen.decode()


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_calibration_and_keeps_its_measurements(number: int, code: int, project: Path) -> None:
    (project / "slow.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "batchcal", "calibrate", "slow.py:task", "--memory-limit", "2GiB"],
        env={**os.environ, **QUICK},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("best mode=train"):
            process.send_signal(number)
            break
    out, rest = process.communicate(timeout=60)
    assert process.returncode == code, "".join(told) + rest
    assert "Traceback" not in rest
    assert rest.strip().splitlines()[-1].startswith(f"stopped by {signal.Signals(number).name}")
    kept = kept_in(project)
    assert kept.status in {"partial", "unsettled"}
    assert kept.measurements[0].outcome.kind == "fits"
    assert kept.status in out


@pytest.mark.smoke
@pytest.mark.slow
def test_a_training_uses_a_new_calibration(project: Path) -> None:
    (project / "batchcal.toml").write_text('[task]\nspec = "task.py:task"\n[plan]\neffective_batch = 96\n[train]\nepochs = 2\n')
    made = batchcal("calibrate", "--memory-limit", "2GiB", "--json")
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert (document["measured"], document["calibration"]["findings"][0]["train"]["batch"]) == (True, 96)
    assert "probe_ended sequence=1" in made.stderr
    planned = batchcal("plan", "--effective-batch", "100", "--json")
    assert (planned.returncode, json.loads(planned.stdout)["micro_batches"]) == (0, [50, 50]), planned.stderr
    # The limit was asked for when it was measured, and holds unless another one is asked for.
    trained = batchcal("train", "--no-calibrate", "--effective-batch", "16", "--seed", "7", "--json")
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert [epoch["steps"] for epoch in result["epochs"]] == [6, 6]
    assert result["epochs"][1]["loss"] < result["epochs"][0]["loss"]
    (checkpoint,) = (project / ".batchcal").glob("*.pt")
    assert (result["checkpoint"], result["not_saved"]) == (str(checkpoint), None)
    more = batchcal("train", "--no-calibrate", "--effective-batch", "16", "--epochs", "3", "--seed", "7", "--resume", "--json")
    assert [epoch["epoch"] for epoch in json.loads(more.stdout)["epochs"]] == [0, 1, 2], more.stderr
    assert f"resuming from {checkpoint}" in more.stderr
    assert "training_started" in trained.stderr
    other = batchcal("train", "--no-calibrate", "--margin", "20%")
    assert other.returncode == 3
    assert "margin was" in other.stderr


@pytest.mark.slow
def test_a_plan_for_another_allocator_restarts_the_training_once(project: Path) -> None:
    done = batchcal("train", "--memory-limit", "2GiB", "--max-batch", "8", "--allocator", "thp", "--force-calibration", "-v")
    if "transparent huge pages" in done.stderr:
        pytest.skip("this kernel gives no huge pages")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("calibrate_started") == 1
    assert "epoch_ended" in done.stderr


@pytest.mark.slow
def test_an_unwritable_calibration_path_is_rejected_before_measuring(project: Path) -> None:
    nowhere = {"BATCHCAL_CALIBRATION": "/proc/nowhere/calibration.json"}
    for verb in ("train", "calibrate"):
        done = batchcal(verb, "--memory-limit", "2GiB", "--max-batch", "8", "--json", **nowhere)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "BATCHCAL_CALIBRATION /proc/nowhere/calibration.json cannot be written" in json.loads(done.stderr)["error"]["what"]


@pytest.mark.slow
def test_training_uses_the_effective_batch_of_the_task(project: Path) -> None:
    (project / "batchcal.toml").write_text('[task]\nspec = "task.py:task"\n')
    text = (project / "task.py").read_text()
    (project / "task.py").write_text(text.replace("loss=loss", "loss=loss, effective_batch=24"))
    quick = ("--memory-limit", "2GiB", "--max-batch", "16", "--time-limit", "40s", "--allocator", "default")
    trained = batchcal("train", *quick, "--json")
    assert trained.returncode == 0, trained.stderr
    assert [epoch["steps"] for epoch in json.loads(trained.stdout)["epochs"]] == [4]
    plan = json.loads(batchcal("plan", "--json").stdout)
    assert (plan["effective_batch"], sum(plan["micro_batches"])) == (24, 24)
    kept = kept_in(project)
    assert kept.facts is not None
    assert kept.facts.effective_batch == 24
    assert kept.effective_batch is None


@pytest.mark.smoke
@pytest.mark.slow
def test_a_failing_task_exits_with_code_5_and_its_traceback(project: Path) -> None:
    (project / "batchcal.toml").write_text('[task]\nspec = "task.py:task"\n[task.args]\nfail = true\n')
    done = batchcal("calibrate", "--memory-limit", "2GiB")
    assert done.returncode == 5
    assert "shapes do not match" in done.stderr
    assert 'task.py", line' in done.stderr


@pytest.mark.slow
def test_a_task_that_fails_only_in_training_exits_with_code_5(calibrated: Calibrated, project: Path) -> None:
    (project / "task.py").write_text((project / "task.py").read_text().replace("fail: bool = False", "fail: bool = True"))
    calibrated()
    done = batchcal("train", "--no-calibrate")
    assert done.returncode == 5, done.stderr
    assert "error: training task.py:task raised ValueError: shapes do not match" in done.stderr


@pytest.mark.slow
def test_auto_selects_the_fastest_allocator_and_training_uses_it(project: Path) -> None:
    fastest = ("--allocator", "auto", "--objective", "throughput", "--memory-limit", "2GiB", "--time-limit", "40s")
    made = batchcal("calibrate", *fastest, "--json")
    assert made.returncode == 0, made.stderr
    calibration = json.loads(made.stdout)["calibration"]
    raced = {one["allocator"]: one for one in calibration["speeds"]}
    assert {"default", "retain"} <= set(raced)
    assert calibration["allocator"] in raced
    assert raced[calibration["allocator"]]["times"]
    assert {finding["allocator"] for finding in calibration["findings"]} == {calibration["allocator"], "default"}
    assert "lap_ended allocator=" in made.stderr
    plan = json.loads(batchcal("plan", "--objective", "throughput", "--allocator", "auto", "--json").stdout)
    assert (plan["allocator"], plan["objective"], plan["status"]) == (calibration["allocator"], "throughput", "verified")
    shown = batchcal("show").stdout
    assert "micro-batch" in shown
    assert "threads  workers" in shown
    assert "the existing calibration is still valid" in batchcal("calibrate", *fastest).stderr
    trained = batchcal("train", *fastest, "--json")
    assert trained.returncode == 0, trained.stderr
    assert f"allocator={calibration['allocator']}" in trained.stderr
