"""The table of faults: each with the tests that inject it here, and what cannot be injected here, with the reason.

The numbers are those of the project's table of faults and expected behaviour (rows 1-57: measuring and the file; 58-61 are
training's). A name stands for all cases of its test. `memory`, `workers`, `processes`, `user_code`, `environment` and
`allocations` are the modules beside this one.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Final, NamedTuple

import pytest

TESTS: Final = Path(__file__).resolve().parents[1]


class Row(NamedTuple):
    fault: str
    tests: tuple[str, ...]
    """`file::test`, the file below tests/."""
    not_here: str = ""
    """What of it cannot be injected on a machine with cgroup v1 and no accelerator, and why."""


def _in(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"faults/test_{module}.py::{name}" for name in names)


CHILDREN: Final = "guard/test_children.py::"
ENGINE: Final = "measure/test_children.py::"
DISKS: Final = "calibration/test_disk_faults.py::"
SEAL: Final = "calibration/test_seal.py::"

TABLE: Final[dict[int, Row]] = {
    1: Row(
        "a batch that is far too large",
        _in("memory", "test_what_a_step_asks_beyond_the_budget_ends_at_the_fence"),
    ),
    2: Row(
        "a slow creep, or a leak, into the limit",
        _in("memory", "test_what_a_step_asks_beyond_the_budget_ends_at_the_fence"),
    ),
    3: Row(
        "RLIMIT_DATA cannot be set, or is set and not kept",
        (
            *_in("memory", "test_without_rlimits_the_watchdog_holds_alone_and_the_record_says_so"),
            "guard/test_fence.py::test_a_limit_that_we_may_not_set_is_no_fence",
            "guard/test_fence.py::test_a_limit_that_the_kernel_does_not_keep_is_found_out",
        ),
        "a kernel booted with ignore_rlimit_data: the call is made to do nothing instead",
    ),
    4: Row(
        "the kernel's OOM killer picks the child",
        (
            *_in("memory", "test_where_no_fence_holds_the_kernel_takes_the_child_and_not_the_larger_parent"),
            "measure/test_campaign.py::test_a_kill_by_the_kernel_doubles_the_margin",
        ),
    ),
    5: Row(
        "the kernel would pick the parent",
        (
            *_in("memory", "test_where_no_fence_holds_the_kernel_takes_the_child_and_not_the_larger_parent"),
            f"{CHILDREN}test_a_child_leads_its_own_group_and_volunteers_for_the_kernel",
        ),
    ),
    6: Row(
        "memory.oom.group: any kill by the kernel takes the container",
        _in("memory", "test_many_probes_of_which_many_do_not_fit_and_the_kernel_kills_none"),
        "the flag itself needs cgroup v2; that the kernel never has to kill is what can be shown, and every lab in a group does",
    ),
    7: Row(
        "workers' batches in shared memory overrun the group",
        _in("workers", "test_workers_that_grow_and_batches_in_flight_end_at_the_watchdog", "test_batches_in_flight_are_demand"),
    ),
    8: Row(
        "/dev/shm of 64 MiB",
        (
            *_in(
                "workers",
                "test_a_full_shared_memory_is_told_and_the_size_fits_without_workers",
                "test_no_batch_is_tried_that_shared_memory_cannot_hold",
            ),
            "measure/test_campaign.py::test_workers_and_prefetched_batches_must_fit_into_shared_memory",
            "detect/test_shared_memory.py::test_a_real_shared_memory_of_64_mib_is_seen_and_warned_of",
        ),
    ),
    9: Row(
        "names left in /dev/shm",
        (
            f"{CHILDREN}test_names_in_shared_memory_go_with_their_process",
            "guard/test_fence.py::test_tensors_of_the_dead_are_swept_and_nobody_else_s",
            *_in("workers", "test_workers_that_grow_and_batches_in_flight_end_at_the_watchdog"),
        ),
    ),
    10: Row("a worker is killed", _in("workers", "test_a_worker_that_dies_is_told_as_such_and_the_others_go_with_it")),
    11: Row("a worker segfaults", _in("workers", "test_a_worker_that_dies_is_told_as_such_and_the_others_go_with_it")),
    12: Row(
        "a worker leaves by os._exit or sys.exit, or raises",
        _in(
            "workers",
            "test_a_worker_that_dies_is_told_as_such_and_the_others_go_with_it",
            "test_what_a_worker_raises_is_the_user_s_with_his_own_traceback",
        ),
    ),
    13: Row("a worker is stuck", _in("workers", "test_a_worker_that_is_stuck_ends_with_the_deadline_and_so_does_all_its_family")),
    14: Row(
        "no more file descriptors",
        (
            *_in("workers", "test_too_few_descriptors_end_in_a_class_and_the_outcome_says_why"),
            "detect/test_advice.py::test_low_limits_of_files_and_processes_are_warned_of",
        ),
    ),
    15: Row(
        "a batch that cannot be pickled",
        _in("workers", "test_a_batch_that_cannot_travel_hangs_the_loader_and_the_outcome_says_why"),
    ),
    16: Row(
        "MemoryError of Python and numpy, ENOMEM of mmap",
        (
            *_in(
                "memory",
                "test_memory_that_is_not_torch_s_is_refused_and_recognised_too",
            ),
            *_in("user_code", "test_an_allocation_of_the_user_s_own_kind_is_not_taken_for_a_lack_of_memory"),
            "guard/test_memory_errors.py::test_every_message_is_told_for_what_it_is",
        ),
    ),
    17: Row(
        "oneDNN follows a null pointer after a failed small allocation",
        _in(
            "allocations",
            "test_any_allocation_that_fails_ends_in_a_class",
            "test_every_allocation_that_fails_ends_in_a_class",
        ),
    ),
    18: Row(
        "threads or processes cannot be created",
        _in("environment", "test_threads_that_cannot_be_created_are_a_suspect", "test_workers_that_cannot_be_started_are_told"),
    ),
    19: Row(
        "the k-th allocation fails, once or from then on",
        _in(
            "allocations",
            "test_a_large_allocation_that_fails_is_memory_or_goes_by",
            "test_any_allocation_that_fails_ends_in_a_class",
            "test_every_allocation_that_fails_ends_in_a_class",
            "test_after_all_that_the_next_probe_works",
        ),
    ),
    20: Row(
        "no memory, or no disk, for the child's report",
        (
            *_in("allocations", "test_any_allocation_that_fails_ends_in_a_class"),
            *_in("environment", "test_a_disk_that_the_task_fills_costs_the_probe_and_is_told"),
        ),
    ),
    21: Row(
        "SIGKILL of the probe at any time",
        (
            *_in(
                "processes",
                "test_a_probe_that_is_killed_in_its_step_is_told_and_the_next_one_works",
                "test_a_thousand_kills_at_random_times_leave_one_outcome_each_and_nothing_behind",
            ),
            f"{CHILDREN}test_random_kills_leave_one_outcome_each_and_nothing_behind",
        ),
    ),
    22: Row(
        "SIGKILL or SIGSTOP of the zygote",
        (
            *_in(
                "processes",
                "test_a_zygote_that_is_killed_takes_its_child_along_and_is_replaced",
                "test_a_zygote_that_is_stopped_hangs_nobody",
            ),
            f"{CHILDREN}test_a_zygote_that_was_killed_is_told_and_its_child_dies_with_it",
            f"{ENGINE}test_a_zygote_that_died_is_replaced",
        ),
    ),
    23: Row(
        "SIGKILL of the parent",
        (
            *_in("processes", "test_nothing_outlives_a_parent_that_is_killed_and_the_next_run_is_clean"),
            f"{CHILDREN}test_children_and_grandchildren_die_with_a_parent_that_is_killed",
        ),
    ),
    24: Row(
        "SIGTERM to the parent, also as process 1 of a container",
        (
            *_in("processes", "test_the_first_process_of_a_container_obeys_signals_and_takes_all_along"),
            "cli/test_process.py::test_a_signal_ends_a_calibration_in_one_line_and_keeps_what_was_measured",
        ),
    ),
    25: Row(
        "Ctrl-C",
        (
            *_in("processes", "test_the_first_process_of_a_container_obeys_signals_and_takes_all_along"),
            "cli/test_process.py::test_a_signal_ends_a_calibration_in_one_line_and_keeps_what_was_measured",
        ),
    ),
    26: Row(
        "SIGSTOP of the probe",
        (
            *_in("processes", "test_a_probe_that_is_stopped_ends_at_its_deadline_by_the_clock_on_the_wall"),
            f"{CHILDREN}test_a_stopped_child_ends_at_its_deadline_too",
        ),
    ),
    27: Row(
        "a pid is used again",
        _in("processes", "test_a_kill_that_comes_late_does_not_meet_the_stranger_who_has_the_pid_now"),
    ),
    28: Row(
        "a result file that is torn or rubbish",
        (
            *_in(
                "processes",
                "test_a_result_that_is_no_result_is_never_an_answer",
                "test_an_examination_that_is_none_is_an_error_that_says_so",
            ),
            f"{CHILDREN}test_a_torn_result_is_no_result",
        ),
    ),
    29: Row(
        "a result that is huge, NaN or negative",
        (
            *_in(
                "processes",
                "test_a_result_that_is_no_result_is_never_an_answer",
                "test_a_number_of_bytes_that_cannot_be_is_refused",
                "test_a_duration_that_cannot_be_is_refused",
            ),
            f"{ENGINE}test_an_answer_that_cannot_be_used_is_ours_to_explain",
        ),
    ),
    30: Row(
        "the user's module raises, exits, leaves or crashes",
        (
            *_in(
                "user_code",
                "test_a_module_that_fails_at_import_is_exit_5_and_says_how",
                "test_leaving_without_a_word_is_an_error_even_with_code_zero",
                "test_a_segfault_under_the_fence_is_a_suspect_and_below_its_size_nothing_is",
                "test_a_task_that_hangs_while_it_loads_ends_at_that_deadline",
                "test_a_step_that_hangs_ends_at_the_probe_s_deadline_and_says_where_it_stood",
                "test_code_that_closes_every_descriptor_is_told_what_it_did",
            ),
            f"{CHILDREN}test_os_exit_without_a_result_is_the_user_s_error_even_with_code_zero",
            f"{CHILDREN}test_a_segfault_far_from_the_limit_is_the_user_s_and_shows_where",
        ),
    ),
    31: Row(
        "the user's module starts threads or OpenMP at import",
        (
            *_in("user_code", "test_a_module_that_starts_threads_and_openmp_at_import_works"),
            f"{CHILDREN}test_openmp_works_in_a_child",
        ),
    ),
    32: Row(
        "the user's code prints a gigabyte",
        (
            *_in("user_code", "test_a_gigabyte_of_output_is_capped_and_blocks_nobody", "test_output_is_no_part_of_the_answer"),
            f"{CHILDREN}test_megabytes_of_output_neither_block_nor_reach_the_result",
        ),
    ),
    33: Row(
        "a script without a main guard, a heredoc, python -c",
        _in("user_code", "test_the_library_works_from_a_script_without_a_main_guard"),
    ),
    34: Row(
        "the dataset starts processes of its own; one leaves the group",
        _in(
            "user_code",
            "test_a_dataset_that_starts_processes_of_its_own_works",
            "test_a_process_that_left_the_group_does_not_outlive_the_probe",
        ),
    ),
    35: Row(
        "the disk is full",
        (
            f"{DISKS}test_a_full_disk_keeps_the_old_calibration_and_the_journals_lines",
            "measure/test_calibrate.py::test_what_cannot_be_saved_is_returned_with_the_reason",
        ),
    ),
    36: Row(
        "a read-only folder",
        (
            f"{DISKS}test_a_read_only_disk_keeps_the_old_calibration",
            f"{DISKS}test_an_image_with_a_calibration_and_a_read_only_root_reads_it_and_writes_to_the_cache",
        ),
    ),
    37: Row(
        "SIGKILL of the writer beside readers",
        (
            "calibration/test_kills.py::test_two_hundred_kills_of_the_writer_give_no_bad_read_and_lose_nothing",
            "core/test_files.py::test_temporary_files_of_killed_writers_are_collected_after_an_hour",
        ),
    ),
    38: Row(
        "fsync or rename fails",
        (
            f"{DISKS}test_a_disk_that_fails_under_the_writer_keeps_the_old_calibration",
            f"{DISKS}test_a_folder_that_cannot_be_made_durable_is_told_though_the_new_file_is_whole",
        ),
    ),
    39: Row("the file is cut at any byte", (f"{SEAL}test_a_file_truncated_at_any_byte_is_refused",)),
    40: Row("any bit is flipped", (f"{SEAL}test_every_single_flipped_bit_is_seen",)),
    41: Row(
        "another key, or none",
        (
            f"{SEAL}test_a_file_is_accepted_and_the_reader_is_told_what_is_not_proven",
            f"{SEAL}test_a_configured_key_or_a_required_signature_refuses_what_others_signed",
            f"{SEAL}test_a_signature_that_claims_our_key_and_is_not_ours_is_always_refused",
        ),
    ),
    42: Row(
        "another version, unknown fields",
        (
            f"{SEAL}test_a_newer_format_is_told_before_its_seal_is_understood",
            f"{SEAL}test_fields_of_a_later_version_survive_being_read_and_written",
        ),
    ),
    43: Row(
        "hostile JSON",
        (
            f"{SEAL}test_other_documents_are_no_calibration",
            "calibration/test_fuzz.py::test_any_bytes_are_refused",
            "calibration/test_fuzz.py::test_any_value_anywhere_under_a_seal_that_holds_is_answered",
        ),
    ),
    44: Row(
        "a symlink, FIFO, device or folder in the file's place",
        (
            "calibration/test_store.py::test_a_symlink_is_not_ours_and_what_it_points_to_stays",
            "calibration/test_store.py::test_a_fifo_a_device_and_a_folder_are_not_ours",
        ),
    ),
    45: Row(
        "folders and files that others may write or own",
        (
            "calibration/test_store.py::test_a_file_that_anybody_may_write_is_not_ours",
            "calibration/test_store.py::test_a_file_of_another_user_is_not_ours",
            "calibration/test_store.py::test_a_folder_that_anybody_may_write_passes_with_a_notice",
        ),
    ),
    46: Row(
        "a clock that is wrong",
        (
            "calibration/test_freshness.py::test_after_a_week_it_is_expired",
            "calibration/test_freshness.py::test_a_clock_set_back_makes_it_future_dated",
        ),
    ),
    47: Row(
        "eight replicas start at once",
        ("calibration/test_replicas.py::test_of_eight_that_start_at_once_one_calibrates_and_seven_read_it",),
    ),
    48: Row(
        "the holder of the lock is killed",
        ("core/test_lock.py::test_a_killed_holder_lets_go_though_a_process_that_it_started_lives_on",),
    ),
    49: Row(
        "a file system without locks",
        (
            "core/test_lock.py::test_a_file_system_without_locks_is_told_and_does_not_stop_us",
            "calibration/test_replicas.py::test_without_locks_each_calibrates_and_what_is_left_is_valid",
        ),
    ),
    50: Row(
        "a process started meanwhile holds the lock on",
        ("core/test_lock.py::test_a_killed_holder_lets_go_though_a_process_that_it_started_lives_on",),
    ),
    51: Row(
        "the page cache fills the group",
        _in("memory", "test_a_file_that_is_mapped_is_not_demand_although_it_fills_the_group"),
    ),
    52: Row("a big parent", _in("memory", "test_a_big_parent_is_not_a_child_s_peak")),
    53: Row(
        "the history of malloc",
        _in("memory", "test_the_demand_of_a_size_does_not_depend_on_what_was_measured_before"),
        "to 2 %: glibc repeats itself within 5-8 % in a fresh process too; 48 MiB are allowed",
    ),
    54: Row(
        "a neighbour takes 300 MiB in the middle of a probe",
        _in("memory", "test_a_neighbour_who_takes_300_mib_in_the_middle_of_a_probe_ends_the_probe_and_nothing_else"),
    ),
    55: Row(
        "the memory limit is lowered",
        (
            *_in(
                "environment",
                "test_a_limit_that_was_lowered_since_makes_a_calibration_stale",
                "test_a_limit_that_is_lowered_in_the_middle_of_a_calibration_ends_probes_and_nothing_else",
            ),
            "calibration/test_freshness.py::test_a_memory_limit_may_differ_by_two_percent",
        ),
    ),
    56: Row(
        "/proc or groups cannot be read",
        _in(
            "environment",
            "test_what_cannot_be_read_costs_precision_and_the_fence_still_holds",
            "test_without_the_state_of_processes_there_is_no_rlimit_and_the_watchdog_holds",
        ),
        "gVisor itself, and a machine without /proc/meminfo: the files that gVisor lacks are hidden instead",
    ),
    57: Row(
        "root was given up without an exec",
        _in(
            "environment",
            "test_a_parent_that_gave_root_up_without_an_exec_measures_as_well",
            "test_a_task_that_gives_root_up_is_told_that_it_could_not_leave_its_result",
        ),
    ),
}


@functools.cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def test_every_fault_has_its_row() -> None:
    assert list(TABLE) == list(range(1, 58))


@pytest.mark.parametrize("number", TABLE)
def test_the_tests_of_a_row_are_there(number: int) -> None:
    row = TABLE[number]
    assert row.fault
    assert row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name in names_in(file), test
