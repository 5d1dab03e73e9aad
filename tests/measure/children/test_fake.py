"""The probe that ships with the product: numbers for a machine."""

from __future__ import annotations

import time

from batchcal.calibration.schema import Mode
from batchcal.core.units import MIB
from batchcal.guard.outcome import Fits, OutOfMemory
from batchcal.measure.capacity.attempts import SearchTarget
from batchcal.measure.children.fake import FakeProbe
from batchcal.measure.children.probe import ProbeRequest


def request(batch: int, *, mode: Mode = "train", budget: int = 400 * MIB) -> ProbeRequest:
    setup = SearchTarget("cpu", "default", mode, budget, samples=8).setup(batch)
    return ProbeRequest(setup=setup, mode=mode, samples=8, train_steps=0, allowed_bytes=budget, budget_bytes=budget)


def test_the_fake_probe_uses_base_memory_plus_memory_per_sample() -> None:
    probe = FakeProbe(base_bytes=100 * MIB, bytes_per_sample=MIB)
    outcome = probe.measure(request(300)).outcome
    assert isinstance(outcome, Fits)
    assert outcome.peak.demand_bytes == 400 * MIB
    assert isinstance(probe.measure(request(301)).outcome, OutOfMemory)
    assert [sent.batch for sent in probe.requests] == [300, 301]


def test_an_evaluation_of_the_fake_probe_needs_less_memory() -> None:
    probe = FakeProbe(base_bytes=100 * MIB, bytes_per_sample=MIB, eval_share=0.5)
    outcome = probe.measure(request(600, mode="eval")).outcome
    assert isinstance(outcome, Fits)
    assert outcome.peak.demand_bytes == 400 * MIB


def test_larger_batches_of_the_fake_probe_are_faster_per_sample() -> None:
    probe = FakeProbe(step_overhead_s=0.1, sample_s=0.001)
    one, many = probe.measure(request(1)).outcome, probe.measure(request(100)).outcome
    assert isinstance(one, Fits)
    assert isinstance(many, Fits)
    assert many.step_s == 0.2
    assert many.samples_per_s == 500.0 > one.samples_per_s


def test_the_curves_of_the_fake_probe_match_its_parameters() -> None:
    probe = FakeProbe(base_bytes=10, bytes_per_sample=4.0, eval_share=0.5)
    examination = probe.examine("cpu", "default", 100, 1.0)
    assert [(point.batch, point.bytes) for point in examination.shapes["train"]] == [(8, 32.0), (64, 256.0)]
    assert [(point.batch, point.bytes) for point in examination.shapes["eval"]] == [(8, 16.0), (64, 128.0)]
    assert examination.base_accelerator_bytes is None
    assert probe.examine("cuda:0", "default", 100, 1.0).base_accelerator_bytes == 10


def test_the_fake_probe_sleeps_for_the_given_time() -> None:
    began = time.monotonic()
    FakeProbe(sleep_s=0.05).measure(request(1))
    assert time.monotonic() - began >= 0.05
    FakeProbe().close()
