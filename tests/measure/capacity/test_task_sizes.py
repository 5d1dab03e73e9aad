"""A refused size is explained by trials: the answer lies near the memory's capacity, and the result names the rule."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Calibration, Options
from batchcal.core.errors import UserCodeError
from batchcal.core.units import GIB, MIB
from batchcal.measure.capacity.task_sizes import TRIAL_STEPS, numbers_in
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.options import options
from batchcal.plan.division.rules import DivisionRefused
from batchcal.plan.make import own_plan, plan_to_show
from tests.support.probes import Harness, saved

Takes = Callable[[int, int], bool]


def calibrated(harness: Harness, takes: Takes, asked: Options | None = None) -> tuple[Calibration, FakeProbe]:
    probe = FakeProbe(takes=takes)
    return harness.calibrate(probe, asked).calibration, probe


@pytest.fixture
def capacity(harness: Harness) -> int:
    """Of the same machine, for a task that takes every size."""
    finding = harness.calibrate(FakeProbe(), options(GIB), output=harness.folder / "every.json").calibration.finding()
    assert finding is not None
    return finding.train.batch


RULES: list[tuple[str, Takes, str]] = [
    ("even", lambda size, warm_up: size % 2 == 0, "accepts only even batches"),
    ("multiples", lambda size, warm_up: size % 12 == 0, "accepts only batches that are multiples of 12"),
    ("at least", lambda size, warm_up: size >= 20, "accepts only batches of 20 or more"),
    ("stateful", lambda size, warm_up: size == warm_up, "accepts only one batch size per process"),
    ("fixed", lambda size, warm_up: size == 32, "accepts only batches of 32"),
]


@pytest.mark.parametrize(("takes", "text"), [(takes, text) for _, takes, text in RULES], ids=[name for name, _, _ in RULES])
def test_the_size_rule_is_detected_and_all_sizes_of_the_result_follow_it(
    harness: Harness, capacity: int, takes: Takes, text: str
) -> None:
    calibration, _ = calibrated(harness, takes)
    finding, rule = calibration.finding(), calibration.size_rule
    assert finding is not None
    assert finding.eval is not None
    assert rule is not None
    assert rule.text == text
    assert calibration.status == "complete"
    assert any(rule.text in note and f"it refused {rule.refused}" in note for note in calibration.notes)
    assert rule.admits(finding.train.batch)
    assert rule.admits(finding.eval.batch)
    if rule.fixed is None:
        assert finding.train.batch >= 0.9 * capacity
        assert finding.train.limited_by == "memory"
    else:
        assert (finding.train.batch, finding.train.limited_by) == (32, "model")
    assert all(one.outcome.kind == "fits" for one in calibration.measurements if one.phase != "refusal")
    assert sum(one.phase == "refusal" for one in calibration.measurements) <= 8
    for race in (*calibration.sizes,):
        assert all(rule.admits(one.micro_batch) for one in race.sizes)
    assert all(one.fits for one in calibration.rehearsals)
    assert calibration.rehearsals


RULE = st.one_of(
    st.builds(lambda multiple: SizeRule(multiple_of=multiple, least=multiple), st.integers(2, 64)),
    st.builds(lambda size: SizeRule(least=size, most=size), st.integers(3, 64)),
    st.builds(lambda least: SizeRule(least=least), st.integers(3, 60)),
    st.builds(lambda multiple: SizeRule(multiple_of=multiple, least=multiple, one_size=True), st.just(1)),
)


@settings(max_examples=25, deadline=None)
@given(truth=RULE, per_sample=st.integers(MIB // 8, 4 * MIB), eval_samples=st.sampled_from([None, 100, 10_000]))
def test_the_result_follows_any_size_rule_and_is_near_the_capacity(
    *, truth: SizeRule, per_sample: int, eval_samples: int | None
) -> None:
    def takes(size: int, warm_up: int) -> bool:
        return truth.admits(size) and (not truth.one_size or size == warm_up)

    answers = []
    for task in (takes, None):
        with tempfile.TemporaryDirectory() as folder:
            probe = FakeProbe(takes=task, bytes_per_sample=per_sample, eval_samples=eval_samples)
            answers.append(Harness(Path(folder)).calibrate(probe).calibration)
    calibration, free = answers
    finding, unbound = calibration.finding(), free.finding()
    assert finding is not None
    assert unbound is not None
    assert calibration.size_rule is not None
    assert truth.admits(finding.train.batch)
    if truth.fixed is None:
        assert finding.train.batch > 0.9 * unbound.train.batch - truth.multiple_of
    plan = own_plan(calibration)
    assert all(map(truth.admits, plan.micro_batches))
    assert finding.eval is None or truth.admits(plan.eval_batch)
    assert all(one.fits for one in calibration.rehearsals)


def test_only_measured_sizes_are_used_when_time_ends_the_trials(harness: Harness) -> None:
    """The examination knows that 32 runs and 2 does not; no trial is left."""
    calibration, probe = calibrated(harness, lambda size, warm_up: size % 16 == 0 and size > 16, options(GIB, max_probes=2))
    finding, rule = calibration.finding(), calibration.size_rule
    assert finding is not None
    assert rule is not None
    assert rule.assumed
    assert "time ran out" in rule.sentence
    assert all(request.batch % 32 == 0 for request in probe.requests if request.samples > TRIAL_STEPS)


def test_a_task_that_accepts_every_size_needs_no_trials(harness: Harness) -> None:
    calibration, _ = calibrated(harness, lambda size, warm_up: True)
    assert calibration.size_rule is None
    assert all(one.phase != "refusal" for one in calibration.measurements)


def test_an_error_at_large_sizes_gives_the_largest_working_size(harness: Harness) -> None:
    calibration, _ = calibrated(harness, lambda size, warm_up: size <= 100)
    finding, rule = calibration.finding(), calibration.size_rule
    assert finding is not None
    assert rule is not None
    assert 95 <= finding.train.batch <= 100
    assert finding.train.limited_by == "model"
    assert rule.most == finding.train.batch
    assert not rule.restricts


def test_sizes_without_a_rule_give_a_large_working_size(harness: Harness, capacity: int) -> None:
    """Powers of two: halving from a refused size misses nearly all of them, a trial near it finds one."""
    calibration, _ = calibrated(harness, lambda size, warm_up: size & (size - 1) == 0)
    finding = calibration.finding()
    assert finding is not None
    assert finding.train.batch > capacity / 4
    assert finding.train.batch & (finding.train.batch - 1) == 0


@pytest.mark.parametrize(("multiple", "most"), [(2, None), (32, 32), (32, None)])
def test_a_given_multiple_is_obeyed_by_every_size(harness: Harness, multiple: int, most: int | None) -> None:
    """A multiple of 32 where only 32 runs needs --max-batch 32 too, or finds that out."""
    takes: Takes = lambda size, warm_up: size % 2 == 0 if multiple == 2 else size == 32  # noqa: E731
    calibration, probe = calibrated(harness, takes, options(GIB, multiple_of=multiple, max_batch=most))
    finding = calibration.finding()
    assert finding is not None
    assert finding.eval is not None
    assert finding.train.batch % multiple == 0
    assert finding.eval.batch % multiple == 0
    assert calibration.size_rule is not None
    assert calibration.size_rule.restricts
    assert all(request.batch % multiple == 0 for request in probe.requests if request.samples > 2)
    assert all(one.fits for one in calibration.rehearsals)


def test_a_given_multiple_is_not_recorded_as_a_size_rule_of_the_task(harness: Harness) -> None:
    calibration, _ = calibrated(harness, lambda size, warm_up: True, options(GIB, multiple_of=8))
    assert calibration.size_rule is None


def test_an_undetected_single_size_is_an_error_that_names_the_flags(harness: Harness) -> None:
    with pytest.raises(UserCodeError) as raised:
        calibrated(harness, lambda size, warm_up: size == 333)
    assert raised.value.exit_code == 5
    assert "--multiple-of N --max-batch N" in raised.value.try_


def test_a_single_size_works_with_multiple_of_and_max_batch(harness: Harness) -> None:
    calibration, _ = calibrated(harness, lambda size, warm_up: size == 333, options(GIB, multiple_of=333, max_batch=333))
    finding = calibration.finding()
    assert finding is not None
    assert finding.eval is not None
    assert (finding.train.batch, finding.eval.batch) == (333, 333)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Expected hidden[0] size (1, 2, 128), got [1, 32, 128]", (2, 128, 32)),
        ("batch must be 1000, not 2", (1000, 2)),
        ("0.25 of x86 in v2 at 99999", ()),
    ],
)
def test_numbers_of_an_error_message_are_tried_as_sizes(text: str, numbers: tuple[int, ...]) -> None:
    assert numbers_in(text) == numbers


def test_a_reused_calibration_rehearses_a_new_plan_with_its_size_rule(harness: Harness) -> None:
    takes: Takes = lambda size, warm_up: size % 32 == 0  # noqa: E731
    calibrated(harness, takes)
    calibration, _ = calibrated(harness, takes, options(GIB, effective_batch=96))
    assert calibration.rehearsals[-1].fits
    assert sum(calibration.rehearsals[-1].settings.micro_batches) == 96


def test_a_rejected_effective_batch_still_saves_a_usable_calibration(harness: Harness) -> None:
    result = harness.calibrate(FakeProbe(takes=lambda size, warm_up: size % 32 == 0), options(GIB, effective_batch=100))
    assert isinstance(result.stopped, DivisionRefused)
    assert result.stopped.exit_code == 2
    assert "--effective-batch 96" in result.stopped.try_
    plan, refused = plan_to_show(saved(harness))
    assert plan.micro_batch % 32 == 0
    assert "an effective batch of 100" in refused
