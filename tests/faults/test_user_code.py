"""The user's own code: what it does at import, in its factory, in its step, and models that are merely unusual."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcal.calibration.schema import Calibration
from batchcal.core.units import MIB
from batchcal.guard.outcome import Fits, OutOfMemory, Suspect, TimedOut, UserCodeFailed
from batchcal.measure.children.probe import Examination
from tests.faults.lab import ROOT, Lab, ask, gone, lab, pid_in
from tests.faults.server import Ask, Failed

pytestmark = [pytest.mark.child, pytest.mark.slow]


def module(folder: Path, text: str) -> Ask:
    (folder / "train.py").write_text(text)
    return ask("train.py:task", directory=folder)


FACTORY = "from tests.faults.tasks import plain as task\n"
AT_IMPORT = [
    pytest.param("raise RuntimeError('no data here')\n", "RuntimeError: no data here", id="raises"),
    pytest.param("import sys; sys.exit(3)\n", "sys.exit(3)", id="sys.exit"),
    pytest.param("raise SystemExit\n", "sys.exit(None)", id="leaves"),
    pytest.param("import os; os._exit(0)\n", "exit code 0", id="os._exit(0)"),
    pytest.param("import ctypes; ctypes.string_at(0)\n", "SIGSEGV", id="segfault"),
    pytest.param("def task(:\n", "SyntaxError", id="syntax"),
]


@pytest.mark.parametrize(("text", "words"), AT_IMPORT)
def test_a_module_that_fails_at_import_exits_with_code_5(machine: Lab, tmp_path: Path, text: str, words: str) -> None:
    failed = machine.examine(module(tmp_path, text + FACTORY))
    assert isinstance(failed, Failed)
    assert (failed.type, failed.exit_code) == ("UserCodeError", 5), failed
    assert words in f"{failed.what}\n{failed.known}"


def test_a_module_that_starts_threads_and_openmp_at_import_works(machine: Lab, tmp_path: Path) -> None:
    starts = (
        "import threading, time, torch\n"
        "torch.set_num_threads(2)\n"
        "torch.ones(512, 512) @ torch.ones(512, 512)\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    asked = module(tmp_path, starts + FACTORY).model_copy(update={"threads": 2})
    assert isinstance(machine.examine(asked), Examination)
    # And once more from the same zygote, which must not have been touched by it.
    assert isinstance(machine.outcome(asked.model_copy(update={"batch": 16})), Fits)


@pytest.mark.parametrize("code", [0, 7])
def test_user_code_that_exits_silently_is_an_error_even_with_code_0(machine: Lab, code: int) -> None:
    failed = machine.examine(ask("leaving", where="load", code=code))
    assert isinstance(failed, Failed)
    assert (failed.exit_code, f"exit code {code}" in failed.what) == (5, True)
    outcome = machine.outcome(ask("leaving", 8, where="step", code=code))
    assert isinstance(outcome, UserCodeFailed)
    assert f"exit code {code}" in outcome.error


def test_a_task_that_hangs_while_loading_is_stopped_at_the_load_limit() -> None:
    with lab(environment={"LAB_LOAD_LIMIT_S": "2"}) as opened:
        failed = opened.examine(ask("hanging", where="load"))
        assert isinstance(failed, Failed)
        assert (failed.type, failed.exit_code) == ("UserCodeError", 5)
        assert "did not finish loading within 2 s" in failed.what
        assert "in hanging" in failed.known


def test_a_step_that_hangs_times_out_and_reports_the_current_function(machine: Lab) -> None:
    outcome = machine.outcome(ask("hanging", 8, where="step", deadline_s=5))
    assert isinstance(outcome, TimedOut)
    assert (outcome.phase, outcome.limit_s) == ("measure", 5)
    assert "in loss" in outcome.detail


@pytest.mark.smoke("outcome:suspect")
def test_a_segmentation_fault_under_the_fence_is_a_suspect_outcome(machine: Lab) -> None:
    outcome = machine.outcome(ask("segfaulting", 64, at=64))
    assert isinstance(outcome, Suspect)
    assert "in loss" in outcome.detail
    assert isinstance(machine.outcome(ask("segfaulting", 63, at=64)), Fits)


@pytest.mark.parametrize("stderr", [False, True])
def test_a_gigabyte_of_output_does_not_block_the_probe(machine: Lab, stderr: bool) -> None:
    report = machine.measure(ask("shouting", 8, mib=1024, stderr=stderr))
    assert isinstance(report.outcome, Fits)


def test_output_of_the_task_is_not_part_of_the_result(machine: Lab, tmp_path: Path) -> None:
    noisy = 'print(\'{"returned": 1}\', flush=True)\nimport os; os.write(1, b"{}\\n"); os.write(2, b"\\xff\\xfe")\n'
    assert isinstance(machine.outcome(module(tmp_path, noisy + FACTORY).model_copy(update={"batch": 8})), Fits)


def test_a_dataset_that_starts_processes_of_its_own_works(machine: Lab) -> None:
    assert isinstance(machine.outcome(ask("nested", 16)), Fits)


def test_code_that_closes_every_file_descriptor_is_a_user_code_error(machine: Lab) -> None:
    outcome = machine.outcome(ask("closing_descriptors", 8))
    assert isinstance(outcome, UserCodeFailed)
    assert "Bad file descriptor" in outcome.error
    assert isinstance(machine.outcome(ask("plain", 8)), Fits)


def test_a_process_that_left_the_group_does_not_outlive_the_probe(machine: Lab, tmp_path: Path) -> None:
    machine.outcome(ask("in_a_session_of_its_own", 8, tell=str(tmp_path / "tell")))
    assert gone(pid_in(tmp_path / "tell"))


LIBRARY = """
from pathlib import Path
import batchcal
print("once")
made = batchcal.calibrate(
    "tests.faults.tasks:plain", output=Path({output!r}), device="cpu", memory_limit_bytes=700 << 20, max_probes=1, max_batch=16,
    allocator="default", objective="memory",
)
print(made.finding().train.batch)
"""


@pytest.mark.parametrize("form", ["script", "heredoc", "command"])
def test_the_library_works_from_a_script_without_a_main_guard(tmp_path: Path, form: str) -> None:
    output = tmp_path / "calibration.json"
    text = LIBRARY.format(output=str(output))
    (tmp_path / "script.py").write_text(text)
    commands = {"script": [str(tmp_path / "script.py")], "heredoc": ["-"], "command": ["-c", text]}
    done = subprocess.run(
        [sys.executable, *commands[form]],
        input=text if form == "heredoc" else None,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "once\n16\n"
    assert json.loads(output.read_text())["measurements"][0]["outcome"]["kind"] == "fits"


# Models and data that are merely unusual, in a real limit


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "calibration.json"


def calibrated(small: Lab, asked: Ask, output: Path, **limits: int) -> Calibration:
    made = small.calibrate(asked, output, **limits)
    assert isinstance(made, Calibration), made
    found = made.finding()
    assert found is not None
    budget_bytes = made.budgets[0].budget_bytes
    if found.train.measured_by == 0:  # a rehearsal of a larger size failed, and one of this size ran
        sizes = {max(run.settings.micro_batches): run.outcome for run in made.rehearsals if isinstance(run.outcome, Fits)}
        assert sizes[found.train.batch].peak.demand_bytes <= budget_bytes
        return made
    by_sequence = {measured.sequence: measured for measured in made.measurements}
    answer = by_sequence[found.train.measured_by]
    assert isinstance(answer.outcome, Fits), "the answer was run"
    assert (answer.batch, answer.mode) == (found.train.batch, "train")
    assert answer.outcome.peak.demand_bytes <= budget_bytes
    return made


UNUSUAL = [
    pytest.param(ask("normed"), id="BatchNorm refuses one sample"),
    pytest.param(ask("branching"), id="control flow that depends on data"),
    pytest.param(ask("stream"), id="a stream without an end"),
    pytest.param(ask("images"), id="samples larger than the model"),
    pytest.param(ask("compiled", backend="aot_eager"), id="torch.compile"),
    pytest.param(ask("recurrent"), id="a GRU", marks=pytest.mark.slow),
]


@pytest.mark.cgroup
@pytest.mark.parametrize("asked", UNUSUAL)
def test_the_result_for_an_unusual_task_uses_the_budget_and_was_measured(small: Lab, output: Path, asked: Ask) -> None:
    made = calibrated(small, asked, output, max_probes=5)
    found = made.finding()
    assert found is not None
    assert found.train.limited_by in {"memory", "max-probes"}
    assert found.train.peak_bytes > 0.85 * made.budgets[0].budget_bytes


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compilation_of_a_model_does_not_time_out_the_probe(machine: Lab) -> None:
    # The compiler and its helpers take some 800 MiB themselves.
    outcome = machine.outcome(ask("compiled", 64, backend="inductor", budget_bytes=3072 * MIB, deadline_s=60))
    assert isinstance(outcome, Fits)


@pytest.mark.cgroup
def test_a_loss_with_quadratic_memory_still_uses_the_budget(small: Lab, output: Path) -> None:
    made = calibrated(small, ask("contrastive"), output, max_probes=5)
    found = made.finding()
    assert found is not None
    assert found.train.peak_bytes > 0.85 * made.budgets[0].budget_bytes
    quadratic = 4 * found.train.batch**2
    assert quadratic < found.train.peak_bytes < 12 * quadratic, "a few square matrices of floats, beside torch itself"


@pytest.mark.cgroup
def test_a_size_rejected_by_the_model_is_limited_by_the_model(small: Lab, output: Path) -> None:
    made = calibrated(small, ask("refusing", above=100), output)
    found = made.finding()
    assert found is not None
    assert 95 <= found.train.batch <= 100, "a gap of 3 % is not worth a probe"
    assert found.train.limited_by == "model"
    assert any("at most 100 samples, please" in note for note in made.notes)


@pytest.mark.cgroup
def test_a_task_that_cannot_fit_two_samples_raises_nothing_fits(small: Lab, output: Path) -> None:
    failed = small.calibrate(ask("branching", mib=500), output)
    assert isinstance(failed, Failed)
    assert (failed.type, failed.exit_code) == ("NothingFits", 4)


@pytest.mark.cgroup
def test_a_task_that_fits_only_a_few_samples_completes(small: Lab, output: Path) -> None:
    made = calibrated(small, ask("branching", mib=60), output, max_probes=5)
    found = made.finding()
    assert found is not None
    assert 2 <= found.train.batch <= 8


def test_a_user_exception_that_mentions_out_of_memory_is_a_user_code_error(machine: Lab, tmp_path: Path) -> None:
    text = (
        "import dataclasses\n"
        "from tests.faults import tasks\n"
        "class Budget(ValueError): pass\n"
        "def loss(model, batch):\n"
        "    if len(batch) > 2: raise Budget('out of memory budget')\n"
        "    return tasks.mean_loss(model, batch)\n"
        "def task(): return dataclasses.replace(tasks.plain(0.1), loss=loss)\n"
    )
    outcome = machine.outcome(module(tmp_path, text).model_copy(update={"batch": 8}))
    assert isinstance(outcome, UserCodeFailed)
    assert "out of memory budget" in outcome.error


def test_a_probe_fits_only_within_its_budget(machine: Lab) -> None:
    outcome = machine.outcome(ask("plain", 32, budget_bytes=400 * MIB))
    assert isinstance(outcome, Fits)
    assert not isinstance(machine.outcome(ask("plain", 32, budget_bytes=100 * MIB)), Fits)
    assert isinstance(machine.outcome(ask("plain", 32, budget_bytes=100 * MIB)), OutOfMemory)
