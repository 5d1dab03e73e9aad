"""batchcal as a library: a script with its own loop uses a calibration in six lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import batchcal
from batchcal.calibration.fingerprint import fingerprint_of
from batchcal.calibration.keys import Trust
from batchcal.calibration.schema import Calibration
from batchcal.calibration.store import save
from batchcal.core.clock import ManualClock, SystemClock
from batchcal.core.errors import NoCalibration, UsageError
from batchcal.core.units import GIB
from batchcal.machine.allocator import available
from batchcal.plan.load import allocator_of_process, free_bytes_now
from batchcal.workload.spec.identity import identify
from batchcal.workload.spec.reference import TaskReference
from tests.support.calibrations import MADE_AT, a_calibration, a_finding, an_environment, options

SCRIPT = """
import torch
import batchcal
from torch.nn import functional
from torch.utils.data import TensorDataset

torch.manual_seed(0)
inputs = torch.randn(200, 8)
dataset = TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())
model = torch.nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)


def loss_of(model, batch):
    inputs, labels = batch
    return functional.cross_entropy(model(inputs), labels)


def task():
    return batchcal.Task(model=model, optimizer=optimizer, train_data=dataset, loss=loss_of)


if __name__ == "__main__":
    plan = batchcal.load_plan(effective_batch=97)
    batchcal.apply(plan)
    loader = batchcal.make_loader(plan, dataset)
    losses = []
    for epoch in range(4):
        total = 0.0
        for group in batchcal.accumulate(plan, loader):
            for batch, weight in group:
                loss = weight * loss_of(model, batch)
                loss.backward()
                total += loss.item()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(total / 3)
    print("RESULT", plan.micro_batches, plan.allocator, torch.get_num_threads(), losses[-1] < 0.7 * losses[0])
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with a script of its own, where we are."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def calibrated_here(project: Path, **overrides: object) -> Calibration:
    """A calibration of `train.py:task` as this machine would have made it, with a capacity of 25."""
    identity = identify(TaskReference(spec="train.py:task", directory=str(project)))
    here = batchcal.detect()
    finding = a_finding()
    small = finding.model_copy(
        update={"train": finding.train.model_copy(update={"batch": 25}), "eval": None, "eval_memory": None}
    )
    wanted = options()
    values: dict[str, object] = {
        "environment": here,
        "task": identity,
        "options": wanted,
        "fingerprint": fingerprint_of(here, identity, wanted, environ=os.environ),
        "findings": (small,),
        "measurements": (),
    }
    calibration = a_calibration(**(values | overrides))
    save(calibration, project / ".batchcal" / "calibration.json", key=Trust().key)
    return calibration


AT = ManualClock(MADE_AT + timedelta(hours=3))


@pytest.mark.smoke
@pytest.mark.child
def test_a_custom_training_loop_follows_the_plan(project: Path) -> None:
    now = SystemClock().now()
    calibrated_here(project, created_at=now, expires_at=now + timedelta(days=7))
    ran = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("RESULT (25, 24, 24, 24) default")
    assert ran.stdout.strip().endswith("True"), "the loss goes down"


def test_every_public_name_exists_and_is_listed() -> None:
    for name in batchcal.__all__:
        assert getattr(batchcal, name) is not None
        assert name in dir(batchcal)
    assert callable(batchcal.detect)
    from batchcal import detect, load_plan

    assert callable(detect)
    assert load_plan is batchcal.load_plan


def test_a_name_that_is_not_public_raises_attribute_error() -> None:
    misspelt = "calibarte"
    with pytest.raises(AttributeError, match="has no attribute 'calibarte'"):
        getattr(batchcal, misspelt)
    assert not hasattr(batchcal, "train_everything")


def test_load_plan_without_a_calibration_raises(project: Path) -> None:
    with pytest.raises(NoCalibration, match="no calibration in"):
        batchcal.load_plan(effective_batch=8)


def test_a_plan_follows_the_settings_of_the_project(project: Path) -> None:
    calibrated_here(project)
    assert batchcal.load_plan(effective_batch=97, clock=AT).objective == "throughput"
    (project / "batchcal.toml").write_text('[plan]\nobjective = "memory"\neffective_batch = 50\n')
    plan = batchcal.load_plan(clock=AT)
    assert (plan.objective, plan.effective_batch) == ("memory", 50)


def test_load_returns_the_saved_calibration(project: Path) -> None:
    calibration = calibrated_here(project)
    assert batchcal.load(clock=AT) == calibration
    assert batchcal.load(project / ".batchcal" / "calibration.json", clock=AT) == calibration
    assert batchcal.load(str(project / ".batchcal" / "calibration.json"), clock=AT) == calibration


def test_load_plan_works_from_a_subfolder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated_here(project)
    (project / "scripts").mkdir()
    monkeypatch.chdir(project / "scripts")
    assert batchcal.load_plan(effective_batch=10, clock=AT).micro_batches == (10,)


def test_load_plan_works_with_a_calibration_of_another_folder(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated_here(project)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setenv("BATCHCAL_CALIBRATION", str(project / ".batchcal" / "calibration.json"))
    assert batchcal.load_plan(effective_batch=10, clock=AT).micro_batches == (10,)


def test_a_stale_calibration_is_rejected_unless_on_stale_is_use(project: Path) -> None:
    calibrated_here(project)
    later = ManualClock(MADE_AT + timedelta(days=8))
    with pytest.raises(NoCalibration, match="expired"):
        batchcal.load_plan(effective_batch=10, clock=later)
    plan = batchcal.load_plan(effective_batch=10, on_stale="use", clock=later)
    assert any("stale (expired" in notice for notice in plan.notices)


def test_a_changed_or_missing_task_makes_a_calibration_stale(project: Path) -> None:
    calibrated_here(project)
    (project / "train.py").write_text(SCRIPT + "\nlearning_rate = 1\n")
    with pytest.raises(NoCalibration, match="other-task"):
        batchcal.load(clock=AT)
    (project / "train.py").unlink()
    with pytest.raises(NoCalibration, match="other-task") as caught:
        batchcal.load(clock=AT)
    assert "the task train.py:task was not found" in caught.value.known


def test_another_memory_limit_makes_a_calibration_stale(project: Path) -> None:
    calibration = calibrated_here(project)
    other = calibration.fingerprint.model_copy(update={"memory_limit_bytes": 3 * GIB})
    calibrated_here(project, fingerprint=other)
    with pytest.raises(NoCalibration, match="other-memory"):
        batchcal.load(clock=AT)


def test_a_tampered_calibration_is_never_used(project: Path) -> None:
    calibrated_here(project)
    file = project / ".batchcal" / "calibration.json"
    text = file.read_text()
    file.write_text(re.sub(r'("batch": *)25\b', r"\g<1>250", text))
    assert file.read_text() != text
    with pytest.raises(NoCalibration, match="bad-digest"):
        batchcal.load_plan(effective_batch=8, clock=AT)
    with pytest.raises(NoCalibration, match="bad-digest"):
        batchcal.load_plan(effective_batch=8, on_stale="use", clock=AT)


def test_an_invalid_on_stale_value_is_rejected(project: Path) -> None:
    script = "import batchcal\nbatchcal.load(on_stale='default')"  # as text: a type checker would refuse it
    with pytest.raises(UsageError, match="on_stale 'default'"):
        exec(script)


def test_the_plan_uses_the_allocator_of_the_current_process(project: Path) -> None:
    calibration = calibrated_here(project, options=options(allocator="tcmalloc"))
    assert allocator_of_process(calibration, current="default") == "default"
    assert allocator_of_process(calibration, current="jemalloc") == "jemalloc", "nothing was measured for it: the plan shows that"
    both = calibration.model_copy(
        update={
            "options": options(allocator="retain"),
            "findings": (*calibration.findings, calibration.findings[0].model_copy(update={"allocator": "retain"})),
        }
    )
    assert allocator_of_process(both, current="default") == "retain", "apply puts it into force"
    assert allocator_of_process(both, current="tcmalloc") == "tcmalloc"


@pytest.mark.child
@pytest.mark.skipif("thp" not in {policy.name for policy in available()}, reason="needs transparent huge pages")
def test_a_process_under_an_unmeasured_allocator_gets_no_plan(project: Path) -> None:
    now = SystemClock().now()
    calibrated_here(project, created_at=now, expires_at=now + timedelta(days=7))
    loaded = "try: batchcal.load_plan(effective_batch=25)\nexcept Exception as error: print(type(error).__name__, error)"
    code = f"import batchcal\n{loaded}"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"THP_MEM_ALLOC_ENABLE": "1"},
        check=False,
    )
    assert ran.stdout.startswith("NoCalibration nothing was verified for cpu with allocator thp"), ran.stdout + ran.stderr


def test_free_memory_includes_the_memory_of_this_process() -> None:
    here = batchcal.detect()
    free = free_bytes_now(here, "cpu")
    assert free is not None
    assert 0 < free <= here.memory.total_bytes
    assert free > min(here.memory.limit.value - here.memory.used_bytes, here.memory.available_bytes)
    assert free_bytes_now(an_environment(), "cuda:1") is None
