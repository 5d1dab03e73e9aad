"""Digests of workers against two reads of the process."""

from __future__ import annotations

from batchcal.measure.workers.comparison import FAILED, Compared, compare


def compared(workers: list[str], first: list[str], second: list[str] | None = None) -> Compared:
    return compare([(list(range(len(workers))), workers)], [(first, second or first)])


def test_equal_samples_are_equal() -> None:
    assert compared(["a", "b"], ["a", "b"]) == Compared(compared=2)


def test_a_record_of_another_index_is_named() -> None:
    result = compared(["a", "c", "x"], ["a", "b", "c"])
    assert (result.compared, result.wrong, result.swapped) == (3, 2, 1)
    assert result.example == "sample 1 has the content of sample 2"


def test_a_sample_that_differs_here_each_time_is_not_compared() -> None:
    result = compared(["a", "b"], ["a", "c"], ["a", "d"])
    assert (result.compared, result.unstable, result.wrong) == (1, 1, 0)


def test_an_error_counts_only_where_the_process_has_none() -> None:
    assert compared([f"{FAILED}KeyError: 3"], [f"{FAILED}KeyError: 3"]).failed == ""
    assert compared(["a"], [f"{FAILED}KeyError: 3"]).failed == ""
    result = compared([f"{FAILED}OSError: gone"], ["a"])
    assert (result.failed, result.error, result.wrong) == ("raise", "OSError: gone, while reading sample 0", 0)


def test_the_comparison_ends_where_the_process_stopped_reading() -> None:
    assert compare([([0], ["a"]), ([1], ["x"])], [(["a"], ["a"])]) == Compared(compared=1)
