"""Rows 51-57 of the table of faults: what the machine does to the numbers, and what it does not tell."""

from __future__ import annotations

from typing import Final

from tests.faults.row import Row, in_faults

MACHINE: Final[dict[int, Row]] = {
    51: Row(
        "the page cache fills the group",
        in_faults("memory", "test_a_file_that_is_mapped_is_not_demand_although_it_fills_the_group"),
    ),
    52: Row("a big parent", in_faults("memory", "test_a_big_parent_is_not_a_child_s_peak")),
    53: Row(
        "the history of malloc",
        in_faults("memory", "test_the_demand_of_a_size_does_not_depend_on_what_was_measured_before"),
        "to 2 %: glibc repeats itself within 5-8 % in a fresh process too; 48 MiB are allowed",
    ),
    54: Row(
        "a neighbour takes 300 MiB in the middle of a probe",
        in_faults("memory", "test_a_neighbour_who_takes_300_mib_in_the_middle_of_a_probe_ends_the_probe_and_nothing_else"),
    ),
    55: Row(
        "the memory limit is lowered",
        (
            *in_faults(
                "environment",
                "test_a_limit_that_was_lowered_since_makes_a_calibration_stale",
                "test_a_limit_that_is_lowered_in_the_middle_of_a_calibration_ends_probes_and_nothing_else",
            ),
            "calibration/test_freshness.py::test_a_memory_limit_may_differ_by_two_percent",
        ),
    ),
    56: Row(
        "/proc or groups cannot be read",
        in_faults(
            "environment",
            "test_what_cannot_be_read_costs_precision_and_the_fence_still_holds",
            "test_without_the_state_of_processes_there_is_no_rlimit_and_the_watchdog_holds",
        ),
        "gVisor itself, and a machine without /proc/meminfo: the files that gVisor lacks are hidden instead",
    ),
    57: Row(
        "root was given up without an exec",
        in_faults(
            "environment",
            "test_a_parent_that_gave_root_up_without_an_exec_measures_as_well",
            "test_a_task_that_gives_root_up_is_told_that_it_could_not_leave_its_result",
        ),
    ),
}
