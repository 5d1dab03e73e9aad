"""Right and unusual tasks in real children: examined, measured and, where it matters, measured right."""

from __future__ import annotations

import pytest

from batchcal.core.errors import UserCodeError
from batchcal.core.units import GIB, MIB
from batchcal.measure.children.probe import Examination
from tests.support.children import fitting, probing, request

pytestmark = [pytest.mark.child]

TASKS = "tests.measure.tasks_capable"


def examined(task: str) -> Examination:
    with probing(f"{TASKS}:{task}") as probe:
        return probe.examine("cpu", "default", GIB, 20.0)


@pytest.mark.parametrize("kind", ["constant", "nan", "weighted"])
def test_a_small_probe_runs_the_model_when_labels_are_rare(kind: str) -> None:
    """Without a label in it, a batch of two takes no memory: the model does not run, or its gradient is not computed."""
    with probing(f"{TASKS}:rare", kind=kind) as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        two = fitting(probe.measure(request(2))).peak.demand_bytes
    with probing(f"{TASKS}:rare", kind=kind, every=1) as probe:
        probe.examine("cpu", "default", GIB, 20.0)
        all_labelled = fitting(probe.measure(request(2))).peak.demand_bytes
    # glibc makes 350 or 400 MB of the same steps; a process at rest holds 240.
    assert two >= 0.8 * all_labelled
    assert all_labelled > 310 * MIB
    assert any("divides by 0" in note and "weight_of" in note for note in examination.notes) == (kind == "nan")


@pytest.mark.parametrize("task", ["some_holes", "mostly_holes", "whole_batches", "lbfgs", "lazy", "switching", "sparse_rows"])
def test_unusual_tasks_are_examined_and_run_in_both_modes(task: str) -> None:
    with probing(f"{TASKS}:{task}") as probe:
        examination = probe.examine("cpu", "default", GIB, 20.0)
        fitting(probe.measure(request(16)))
        fitting(probe.measure(request(16, mode="eval", train_batch=16)))
    violated = {check.promise for check in examination.promises if check.result == "violated"}
    assert violated == {"lbfgs": {"step-without-loss"}, "lazy": {"batch-statistics"}}.get(task, set())


def test_the_parameters_of_lazy_modules_are_counted() -> None:
    assert examined("lazy").facts.parameters == 256 * 32 + 32 + 2 * 32 + 32 * 4 + 4


def test_a_detached_loss_is_a_user_code_error_that_names_the_cause() -> None:
    with pytest.raises(UserCodeError, match="no gradient flows back from the loss") as caught:
        examined("detached")
    assert "model(...)" in caught.value.try_
