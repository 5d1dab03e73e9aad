"""Fresh only on proof: each part that can differ has its reason, and the detail says what it was and what it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from batchcal.calibration.freshness import CLOCK_SKEW, check, check_age, differs, moved
from batchcal.calibration.schema import Calibration
from batchcal.calibration.stale import Stale
from batchcal.core.units import GIB
from batchcal.detect.environment import Accelerator, Fact
from tests.support.calibrations import MADE_AT, a_calibration, an_environment, fingerprint, options, sha256_of

HOUR_LATER = MADE_AT + timedelta(hours=1)


def stale(calibration: Calibration | None = None, *, at: datetime = HOUR_LATER, **changes: object) -> Stale:
    found = check(calibration or a_calibration(), fingerprint(**changes), at=at)
    assert found is not None, "was fresh"
    return found


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=1), timedelta(days=6, hours=23), -CLOCK_SKEW])
def test_a_calibration_of_the_same_machine_and_task_is_fresh_for_a_week(age: timedelta) -> None:
    assert check(a_calibration(), fingerprint(), at=MADE_AT + age) is None


@pytest.mark.parametrize("age", [timedelta(days=7), timedelta(days=8), timedelta(days=3650)])
def test_a_calibration_expires_after_a_week(age: timedelta) -> None:
    found = stale(at=MADE_AT + age)

    assert found.reason == "expired"
    assert "2026-07-01 12:00" in found.detail
    assert f"{age.days} d" in found.detail


@pytest.mark.parametrize("age", [timedelta(minutes=-11), timedelta(days=-1), timedelta(days=-3650)])
def test_a_clock_set_back_makes_a_calibration_future_dated(age: timedelta) -> None:
    assert stale(at=MADE_AT + age).reason == "future-dated"


def test_expires_at_can_shorten_but_not_extend_the_week() -> None:
    soon = a_calibration(expires_at=MADE_AT + timedelta(hours=1))
    never = a_calibration(expires_at=datetime(9999, 12, 31, tzinfo=UTC))

    assert stale(soon, at=HOUR_LATER).reason == "expired"
    assert stale(never, at=MADE_AT + timedelta(days=7)).reason == "expired"


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
        datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-12))),
    ],
)
def test_the_earliest_and_latest_possible_dates_are_stale_without_an_error(moment: datetime) -> None:
    assert check_age(moment, at=MADE_AT, expires_at=moment) is not None
    assert check(a_calibration(created_at=moment, expires_at=moment), fingerprint(), at=MADE_AT) is not None


def test_the_time_zone_of_a_timestamp_does_not_change_freshness() -> None:
    elsewhere = MADE_AT.astimezone(timezone(timedelta(hours=9)))

    assert check(a_calibration(created_at=elsewhere), fingerprint(), at=HOUR_LATER) is None


@pytest.mark.parametrize("part", ["cpu", "os", "python", "torch", "accelerator", "task", "options"])
def test_each_changed_part_of_the_fingerprint_has_its_own_stale_reason(part: str) -> None:
    found = check(a_calibration(), fingerprint(**{part: sha256_of("another")}), at=HOUR_LATER)

    assert found is not None
    assert found.reason == f"other-{part}"
    assert found.detail


@pytest.mark.parametrize(
    ("limit", "fresh"),
    [
        (GIB, True),
        (int(GIB * 1.019), True),
        (int(GIB * 0.981), True),
        (int(GIB * 1.021), False),
        (int(GIB * 0.979), False),
        (2 * GIB, False),
    ],
)
def test_a_memory_limit_may_differ_by_two_percent(limit: int, fresh: bool) -> None:
    found = check(a_calibration(), fingerprint(memory_limit_bytes=limit), at=HOUR_LATER)

    assert (found is None) == fresh
    if found is not None:
        assert found.reason == "other-memory"
        assert found.detail.startswith("measured with a memory limit of 1.00 GiB, now it is ")
        assert "now it is 1.00 GiB" not in found.detail


def test_a_missing_or_changed_allocator_library_makes_a_calibration_stale() -> None:
    measured = a_calibration(fingerprint=fingerprint(allocators={"default": "", "tcmalloc": "aaaa"}))
    gone = check(measured, fingerprint(allocators={"default": ""}), at=HOUR_LATER)
    changed = check(measured, fingerprint(allocators={"default": "", "tcmalloc": "bbbb"}), at=HOUR_LATER)
    more = check(measured, fingerprint(allocators={"default": "", "tcmalloc": "aaaa", "mimalloc": "cccc"}), at=HOUR_LATER)

    assert gone == Stale(reason="other-allocator", detail="the library of allocator tcmalloc no longer exists")
    assert changed == Stale(
        reason="other-allocator", detail="the library of allocator tcmalloc has changed since the measurement"
    )
    assert more is None


def test_the_stale_detail_shows_the_old_and_the_new_value() -> None:
    one_gpu = (
        Accelerator(kind="cuda", index=0, name="H200", total_bytes=141 * GIB, free_bytes=GIB, capability="9.0", mig=False),
    )
    cores = Fact[float](value=1.5, learned_from="cpu.max")
    now = an_environment(cpu=an_environment().cpu.model_copy(update={"cores": cores}), accelerators=one_gpu)
    software = now.software.model_copy(update={"torch": "2.14.0", "cuda": "13.0", "python": "3.12.1", "os": "Linux 7.0"})
    now = now.model_copy(update={"software": software})

    def detail(part: str) -> str:
        found = check(a_calibration(), fingerprint(**{part: "another"}), at=HOUR_LATER, environment=now)
        assert found is not None
        return found.detail

    assert "2 of 8 cores (x86_64), now it is" in detail("cpu")
    assert detail("cpu").endswith("1.5 of 8 cores (x86_64)")
    assert detail("torch") == "measured on torch 2.13.0, now it is torch 2.14.0 with CUDA 13.0"
    assert detail("python") == "measured on Python 3.11.15, now it is Python 3.12.1"
    assert detail("os") == "measured on Linux 6.18.44, glibc 2.36, now it is Linux 7.0, glibc 2.36"
    assert detail("accelerator") == "measured on no accelerator, now it is H200 (141 GiB)"


def test_the_stale_detail_does_not_repeat_two_equal_descriptions() -> None:
    found = check(a_calibration(), fingerprint(cpu="another"), at=HOUR_LATER, environment=an_environment())

    assert found is not None
    assert "now it is Intel" not in found.detail
    assert "differs now" in found.detail


def test_the_stale_detail_of_a_task_names_the_changed_arguments_and_files() -> None:
    then = a_calibration().task
    edited = then.model_copy(
        update={
            "sources": {**then.sources, "batchcal.workload.examples.handwriting": "x"},
            "arguments": {"width": 64, "depth": 2},
        }
    )
    moved = then.model_copy(update={"spec": "mine.py:task"})

    by_edit = check(a_calibration(), fingerprint(task="another"), at=HOUR_LATER, task=edited)
    by_spec = check(a_calibration(), fingerprint(task="another"), at=HOUR_LATER, task=moved)
    by_nothing = check(a_calibration(), fingerprint(task="another"), at=HOUR_LATER, task=then)

    assert by_edit is not None
    assert by_edit.detail.endswith(
        "depth was not set, now it is 2; learning_rate was 0.001, now it is not set; width was 32, now it is 64; "
        "batchcal.workload.examples.handwriting was edited"
    )
    assert by_spec is not None
    assert by_spec.detail.endswith("now it is mine.py:task")
    assert by_nothing is not None
    assert by_nothing.detail.endswith("it changed")


def test_a_calibration_with_byte_hashes_is_stale_and_the_detail_explains_it() -> None:
    then = a_calibration().task
    now = then.model_copy(update={"hashes": "syntax", "folder": "/code"})
    stale = check(a_calibration(), fingerprint(task="another"), at=HOUR_LATER, task=now)
    assert stale is not None
    assert stale.reason == "other-task"
    assert stale.detail.endswith("by an earlier version of batchcal, which compared sources byte by byte")


def test_a_spec_from_another_folder_is_not_reported_as_another_task() -> None:
    then = a_calibration().task.model_copy(update={"spec": "src/train.py:task"})
    now = then.model_copy(update={"spec": "train.py:task", "arguments": {}})
    calibration = a_calibration(task=then)
    stale = check(calibration, fingerprint(task="another"), at=HOUR_LATER, task=now)
    assert stale is not None
    assert "now it is train.py" not in stale.detail
    assert "learning_rate was 0.001, now it is not set" in stale.detail


def test_a_calibration_made_in_another_folder_produces_a_notice() -> None:
    here = a_calibration().task.model_copy(update={"folder": "/code"})
    assert moved(here, here) == ()
    assert moved(here.model_copy(update={"folder": None}), here) == ()
    (notice,) = moved(here.model_copy(update={"folder": "/other"}), here)
    assert notice.startswith("calibrated in another folder, /other")


def test_the_stale_detail_names_changed_options_but_not_search_limits() -> None:
    asked = options(margin=0.1, time_limit_s=10.0, max_probes=3)

    found = check(a_calibration(), fingerprint(options="another"), at=HOUR_LATER, options=asked)
    unexplained = check(a_calibration(), fingerprint(options="another"), at=HOUR_LATER, options=options())

    assert found == Stale(reason="other-options", detail="measured with other options: margin was 0.15, now it is 0.1")
    assert unexplained is not None
    assert "defaults" in unexplained.detail


def test_a_machine_difference_is_reported_before_a_task_difference() -> None:
    assert stale(cpu="x", task="x", options="x").reason == "other-cpu"
    assert differs(fingerprint(), fingerprint()) is None


def test_a_stale_reason_is_printed_on_one_line() -> None:
    assert str(Stale(reason="expired", detail="made long ago")) == "expired: made long ago"
