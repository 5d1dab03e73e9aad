"""How many workers a plan has once the input pipeline was measured: work is conserved, and promises are not made twice."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.pipeline import LoaderConfig, LoaderTiming, PipelineResult
from batchcal.calibration.schema import Calibration
from batchcal.core.units import GIB
from batchcal.plan.workers import choose_workers
from tests.support.calibrations import MADE_AT, a_calibration, a_finding, an_environment


def timing(workers: int, rate: float | None, prefetch: int = 2) -> LoaderTiming:
    config = LoaderConfig(num_workers=workers, prefetch_factor=prefetch if workers else None, persistent_workers=workers > 0)
    return LoaderTiming(config=config, samples_per_s=rate, p95_s=rate and 0.1, rounds=3, left="" if rate else "failed")


def measured(*timings: LoaderTiming, cores: float = 2.0, **overrides: object) -> Calibration:
    ranked = tuple(sorted(timings, key=lambda one: -(one.samples_per_s or 0.0)))
    pipeline = PipelineResult(created_at=MADE_AT, batch=128, fetches=8, timings=ranked, settled=True, tie=0.03, wall_s=4.0)
    here = an_environment()
    cpu = here.cpu.model_copy(update={"cores": here.cpu.cores.model_copy(update={"value": cores})})
    environment = here.model_copy(update={"cpu": cpu})
    return a_calibration(**({"pipeline": pipeline, "environment": environment} | overrides))


def chosen(calibration: Calibration, *, rate: float | None = 100.0, device: str = "cpu") -> tuple[int, int | None, str]:
    finding = a_finding(device=device)
    workers = choose_workers(calibration, finding, largest_batch=8, room_bytes=GIB, samples_per_s=rate)
    return workers.count, workers.prefetch, workers.why


def test_fast_data_loading_needs_no_workers() -> None:
    count, prefetch, why = chosen(measured(timing(0, 2000), timing(1, 1900), timing(2, 3500)))
    assert (count, prefetch) == (0, None)
    assert why == "fetching takes 5% of a step: workers would gain at most 3%"


def test_moderate_data_loading_gets_workers_on_eight_cores_but_not_on_two() -> None:
    """A fifth of a step: 11 % are promised, which the workers' own cost may eat."""
    timings = (timing(0, 500), timing(1, 480), timing(2, 900))
    assert chosen(measured(*timings))[0] == 0
    assert chosen(measured(*timings, cores=8.0))[0] == 1


def test_slow_data_loading_gets_the_fewest_workers_that_keep_up() -> None:
    count, prefetch, why = chosen(measured(timing(0, 120), timing(1, 115), timing(2, 230), timing(4, 450), cores=8.0))
    assert (count, prefetch) == (4, 2)
    assert why.startswith("fetching takes 83% of a step: workers gain up to ")


def test_an_accelerator_gets_the_fewest_workers_that_keep_up() -> None:
    timings = (timing(0, 210), timing(1, 200), timing(2, 390))
    assert chosen(measured(*timings, cores=4.0), device="cuda:0")[0] == 1


def test_workers_that_could_not_be_run_are_not_planned() -> None:
    assert chosen(measured(timing(0, 110), timing(1, None), timing(2, None))) == (
        0,
        None,
        "fetching takes 91% of a step, but workers could not be run",
    )


@pytest.mark.parametrize("rate", [None, 100.0])
def test_workers_depend_on_the_cores_if_a_rate_is_missing(rate: float | None) -> None:
    unmeasured = a_calibration(environment=an_environment(optimal_workers=0))
    assert chosen(unmeasured, rate=rate)[2] == "with 2 cores, workers would take CPU time from the training"
    assert chosen(measured(timing(0, 120), timing(2, 240)), rate=None)[0] == 0


def test_a_stream_gets_one_worker_regardless_of_the_requested_number() -> None:
    plain = a_calibration()
    assert plain.facts is not None
    facts = plain.facts.model_copy(update={"worst_case": "first-samples"})
    asked = plain.options.model_copy(update={"workers": 4})
    count, _, why = chosen(plain.model_copy(update={"facts": facts, "options": asked}))
    assert count == 1
    assert why == "a stream needs a single worker: each of 4 workers would read all samples"
