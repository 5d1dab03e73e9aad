"""Rows 51-57 of the table of faults: what the machine does to the numbers, and what it does not tell."""

from __future__ import annotations

from typing import Final

from tests.faults.row import Row, in_faults

MACHINE: Final[dict[int, Row]] = {
    51: Row(
        "the page cache fills the group",
        in_faults("memory", "test_a_memory_mapped_file_does_not_count_as_demand"),
    ),
    52: Row("a big parent", in_faults("memory", "test_memory_of_the_parent_does_not_count_in_the_peak_of_a_child")),
    53: Row(
        "the history of malloc",
        in_faults("memory", "test_the_demand_of_a_batch_size_does_not_depend_on_earlier_probes"),
        "to 2 %: glibc repeats itself within 5-8 % in a fresh process too; 48 MiB are allowed",
    ),
    54: Row(
        "a neighbour takes 300 MiB in the middle of a probe",
        in_faults("memory", "test_memory_growth_of_another_process_ends_only_the_probe"),
    ),
    55: Row(
        "the memory limit is lowered",
        (
            *in_faults(
                "environment",
                "test_a_lowered_memory_limit_makes_a_calibration_stale",
                "test_a_memory_limit_lowered_during_a_calibration_ends_only_probes",
            ),
            "calibration/test_freshness.py::test_a_memory_limit_may_differ_by_two_percent",
        ),
    ),
    56: Row(
        "/proc or groups cannot be read",
        in_faults(
            "environment",
            "test_the_fence_holds_when_proc_or_cgroup_files_cannot_be_read",
            "test_the_watchdog_replaces_the_rlimit_when_process_status_cannot_be_read",
        ),
        "gVisor itself, and a machine without /proc/meminfo: the files that gVisor lacks are hidden instead",
    ),
    57: Row(
        "root was given up without an exec",
        in_faults(
            "environment",
            "test_a_parent_that_dropped_root_privileges_can_measure",
            "test_a_task_that_drops_root_privileges_fails_with_permission_denied",
        ),
    ),
}
