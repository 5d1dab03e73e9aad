"""Digests of workers against two reads of the process."""

from __future__ import annotations

from batchcal.measure.workers.comparison import FAILED, Compared, compare


def compared(workers: list[str], first: list[str], second: list[str] | None = None) -> Compared:
    return compare([(list(range(len(workers))), workers)], [(first, second or first)])


def test_equal_samples_pass_the_comparison() -> None:
    assert compared(["a", "b"], ["a", "b"]) == Compared(compared=2)


def test_a_record_of_another_index_is_reported() -> None:
    result = compared(["a", "c", "x"], ["a", "b", "c"])
    assert (result.compared, result.wrong, result.swapped) == (3, 2, 1)
    assert result.example == "sample 1 has the content of sample 2"


def test_a_sample_that_changes_between_reads_is_not_compared() -> None:
    result = compared(["a", "b"], ["a", "c"], ["a", "d"])
    assert (result.compared, result.unstable, result.wrong) == (1, 1, 0)


def test_a_worker_error_counts_only_if_the_process_reads_without_error() -> None:
    assert compared([f"{FAILED}KeyError: 3"], [f"{FAILED}KeyError: 3"]).failed == ""
    assert compared(["a"], [f"{FAILED}KeyError: 3"]).failed == ""
    result = compared([f"{FAILED}OSError: gone"], ["a"])
    assert (result.failed, result.error, result.wrong) == ("raise", "OSError: gone, while reading sample 0", 0)


def test_the_comparison_ends_at_the_last_batch_read_by_the_process() -> None:
    assert compare([([0], ["a"]), ([1], ["x"])], [(["a"], ["a"])]) == Compared(compared=1)
