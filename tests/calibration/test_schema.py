"""A calibration answers by device and allocator."""

from __future__ import annotations

from tests.support.calibrations import a_calibration, a_finding, options


def test_the_default_finding_has_the_chosen_device_and_allocator() -> None:
    tcmalloc, other = a_finding(allocator="tcmalloc"), a_finding(device="cuda:0")
    both = a_calibration(findings=(tcmalloc, a_finding(), other))
    asked = a_calibration(findings=(tcmalloc, a_finding()), options=options(allocator="tcmalloc"))

    assert both.finding() == a_finding()
    assert both.finding(allocator="tcmalloc") == tcmalloc
    assert both.finding(device="cuda:0") == other
    assert both.finding(allocator="mimalloc") is None
    assert asked.finding() == tcmalloc


def test_the_budget_of_a_device_that_was_not_measured_is_unknown() -> None:
    calibration = a_calibration()
    budget = calibration.budget()

    assert budget is not None
    assert budget.budget_bytes == budget.limit_bytes - budget.others_bytes - budget.margin_bytes
    assert calibration.budget("cuda:0") is None
