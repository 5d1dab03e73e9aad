"""Rows 1-34 of the table of faults: what meets a probe, its process and the user's code."""

from __future__ import annotations

from typing import Final

from tests.faults.row import Row, in_faults

CHILDREN: Final = "guard/test_children.py::"
ENGINE: Final = "measure/children/test_child_probe.py::"
ANSWERS: Final = "measure/children/test_child_probe_answers.py::"

PROBES: Final[dict[int, Row]] = {
    1: Row(
        "a batch that is far too large",
        in_faults("memory", "test_a_step_above_the_budget_is_stopped_by_the_fence_or_the_watchdog"),
    ),
    2: Row(
        "a slow creep, or a leak, into the limit",
        in_faults("memory", "test_a_step_above_the_budget_is_stopped_by_the_fence_or_the_watchdog"),
    ),
    3: Row(
        "RLIMIT_DATA cannot be set, or is set and not kept",
        (
            *in_faults("memory", "test_without_rlimits_the_watchdog_stops_the_probe_and_the_record_shows_it"),
            "guard/limits/test_fence.py::test_the_fence_is_unavailable_if_prlimit_is_not_permitted",
            "guard/limits/test_fence.py::test_a_data_limit_that_the_kernel_ignores_is_detected",
        ),
        "a kernel booted with ignore_rlimit_data: the call is made to do nothing instead",
    ),
    4: Row(
        "the kernel's OOM killer picks the child",
        (
            *in_faults("memory", "test_without_a_fence_the_kernel_kills_the_child_and_not_the_parent"),
            "measure/capacity/test_device_search.py::test_a_kill_by_the_kernel_doubles_the_margin",
        ),
    ),
    5: Row(
        "the kernel would pick the parent",
        (
            *in_faults("memory", "test_without_a_fence_the_kernel_kills_the_child_and_not_the_parent"),
            f"{CHILDREN}test_a_child_leads_its_own_process_group_with_the_highest_oom_score",
        ),
    ),
    6: Row(
        "memory.oom.group: any kill by the kernel takes the container",
        in_faults("memory", "test_the_kernel_kills_none_of_many_random_probes"),
        "the flag itself needs cgroup v2; that the kernel never has to kill is what can be shown, and every lab in a group does",
    ),
    7: Row(
        "workers' batches in shared memory overrun the group",
        in_faults(
            "workers", "test_the_watchdog_stops_growing_workers_and_prefetched_batches", "test_prefetched_batches_count_as_demand"
        ),
    ),
    8: Row(
        "/dev/shm of 64 MiB",
        (
            *in_faults(
                "workers",
                "test_full_shared_memory_is_reported_and_the_size_fits_without_workers",
                "test_a_batch_that_exceeds_shared_memory_is_not_tried",
            ),
            "measure/capacity/test_device_search.py::test_workers_and_prefetched_batches_must_fit_into_shared_memory",
            "detect/test_shared_memory.py::test_a_real_shared_memory_of_64_mib_is_detected_with_advice",
        ),
    ),
    9: Row(
        "names left in /dev/shm",
        (
            f"{CHILDREN}test_shared_memory_of_a_child_is_removed_when_it_ends",
            "guard/cleanup/test_shared_names.py::test_only_shared_memory_names_of_our_dead_processes_are_removed",
            *in_faults("workers", "test_the_watchdog_stops_growing_workers_and_prefetched_batches"),
        ),
    ),
    10: Row("a worker is killed", in_faults("workers", "test_a_worker_that_dies_is_reported_and_the_other_workers_end")),
    11: Row("a worker segfaults", in_faults("workers", "test_a_worker_that_dies_is_reported_and_the_other_workers_end")),
    12: Row(
        "a worker leaves by os._exit or sys.exit, or raises",
        in_faults(
            "workers",
            "test_a_worker_that_dies_is_reported_and_the_other_workers_end",
            "test_an_exception_in_a_worker_is_a_user_code_error_with_its_traceback",
        ),
    ),
    13: Row("a worker is stuck", in_faults("workers", "test_a_worker_that_hangs_times_out_and_all_workers_end")),
    14: Row(
        "no more file descriptors",
        (
            *in_faults("workers", "test_too_few_file_descriptors_produce_an_outcome_with_the_reason"),
            "detect/test_advice.py::test_low_limits_of_files_and_processes_produce_advice",
        ),
    ),
    15: Row(
        "a batch that cannot be pickled",
        in_faults("workers", "test_a_batch_that_cannot_be_pickled_times_out_with_the_reason"),
    ),
    16: Row(
        "MemoryError of Python and numpy, ENOMEM of mmap",
        (
            *in_faults(
                "memory",
                "test_out_of_memory_errors_of_python_numpy_and_mmap_are_recognized",
            ),
            *in_faults("user_code", "test_a_user_exception_that_mentions_out_of_memory_is_a_user_code_error"),
            "guard/children/test_memory_errors.py::test_every_error_message_is_classified_correctly",
        ),
    ),
    17: Row(
        "oneDNN follows a null pointer after a failed small allocation",
        in_faults(
            "allocations",
            "test_a_failed_allocation_produces_a_classified_outcome",
            "test_failed_allocations_never_time_out_or_count_as_user_errors",
        ),
    ),
    18: Row(
        "threads or processes cannot be created",
        in_faults(
            "environment", "test_failed_thread_creation_is_a_suspect_outcome", "test_workers_that_cannot_start_are_reported"
        ),
    ),
    19: Row(
        "the k-th allocation fails, once or from then on",
        in_faults(
            "allocations",
            "test_a_failed_large_allocation_is_out_of_memory_suspect_or_harmless",
            "test_a_failed_allocation_produces_a_classified_outcome",
            "test_failed_allocations_never_time_out_or_count_as_user_errors",
            "test_a_probe_works_after_failed_allocations",
        ),
    ),
    20: Row(
        "no memory, or no disk, for the child's report",
        (
            *in_faults("allocations", "test_a_failed_allocation_produces_a_classified_outcome"),
            *in_faults("environment", "test_a_task_that_fills_the_disk_fails_its_probe_with_the_reason"),
        ),
    ),
    21: Row(
        "SIGKILL of the probe at any time",
        (
            *in_faults(
                "processes",
                "test_a_killed_probe_is_reported_and_the_next_probe_works",
                "test_children_killed_at_random_times_each_have_one_outcome",
            ),
            f"{CHILDREN}test_each_random_kill_produces_one_outcome_and_leaves_no_process",
        ),
    ),
    22: Row(
        "SIGKILL or SIGSTOP of the zygote",
        (
            *in_faults(
                "processes",
                "test_a_killed_zygote_ends_its_child_and_is_replaced",
                "test_a_suspended_zygote_does_not_block_the_parent",
            ),
            f"{CHILDREN}test_a_killed_zygote_is_reported_and_its_child_is_killed",
            f"{ENGINE}test_a_zygote_that_died_is_replaced",
        ),
    ),
    23: Row(
        "SIGKILL of the parent",
        (
            *in_faults("processes", "test_all_children_end_when_the_parent_is_killed_and_the_next_run_works"),
            f"{CHILDREN}test_children_and_grandchildren_end_when_the_parent_is_killed",
        ),
    ),
    24: Row(
        "SIGTERM to the parent, also as process 1 of a container",
        (
            *in_faults("processes", "test_process_1_of_a_container_ends_with_all_children_on_a_signal"),
            "cli/test_process.py::test_a_signal_ends_a_calibration_and_keeps_its_measurements",
        ),
    ),
    25: Row(
        "Ctrl-C",
        (
            *in_faults("processes", "test_process_1_of_a_container_ends_with_all_children_on_a_signal"),
            "cli/test_process.py::test_a_signal_ends_a_calibration_and_keeps_its_measurements",
        ),
    ),
    26: Row(
        "SIGSTOP of the probe",
        (
            *in_faults("processes", "test_a_suspended_probe_times_out_by_wall_clock"),
            f"{CHILDREN}test_a_stopped_child_is_ended_at_its_deadline",
        ),
    ),
    27: Row(
        "a pid is used again",
        in_faults("processes", "test_a_late_kill_does_not_hit_a_process_that_reuses_the_pid"),
    ),
    28: Row(
        "a result file that is torn or rubbish",
        (
            *in_faults(
                "processes",
                "test_a_malformed_result_is_never_accepted",
                "test_an_invalid_examination_raises_guard_error",
            ),
            f"{CHILDREN}test_a_truncated_result_counts_as_no_result",
        ),
    ),
    29: Row(
        "a result that is huge, NaN or negative",
        (
            *in_faults(
                "processes",
                "test_a_malformed_result_is_never_accepted",
                "test_an_impossible_byte_count_is_rejected",
                "test_an_impossible_duration_is_rejected",
            ),
            f"{ANSWERS}test_an_unusable_answer_of_a_child_is_an_infrastructure_outcome",
        ),
    ),
    30: Row(
        "the user's module raises, exits, leaves or crashes",
        (
            *in_faults(
                "user_code",
                "test_a_module_that_fails_at_import_exits_with_code_5",
                "test_user_code_that_exits_silently_is_an_error_even_with_code_0",
                "test_a_segmentation_fault_under_the_fence_is_a_suspect_outcome",
                "test_a_task_that_hangs_while_loading_is_stopped_at_the_load_limit",
                "test_a_step_that_hangs_times_out_and_reports_the_current_function",
                "test_code_that_closes_every_file_descriptor_is_a_user_code_error",
            ),
            f"{CHILDREN}test_os_exit_without_a_result_is_a_user_error_even_with_code_zero",
            f"{CHILDREN}test_a_segfault_far_from_the_limit_is_a_user_error_with_a_traceback",
        ),
    ),
    31: Row(
        "the user's module starts threads or OpenMP at import",
        (
            *in_faults("user_code", "test_a_module_that_starts_threads_and_openmp_at_import_works"),
            f"{CHILDREN}test_openmp_works_in_a_child",
        ),
    ),
    32: Row(
        "the user's code prints a gigabyte",
        (
            *in_faults(
                "user_code",
                "test_a_gigabyte_of_output_does_not_block_the_probe",
                "test_output_of_the_task_is_not_part_of_the_result",
            ),
            f"{CHILDREN}test_megabytes_of_output_do_not_block_a_child_and_are_truncated",
        ),
    ),
    33: Row(
        "a script without a main guard, a heredoc, python -c",
        in_faults("user_code", "test_the_library_works_from_a_script_without_a_main_guard"),
    ),
    34: Row(
        "the dataset starts processes of its own; one leaves the group",
        in_faults(
            "user_code",
            "test_a_dataset_that_starts_processes_of_its_own_works",
            "test_a_process_that_left_the_group_does_not_outlive_the_probe",
        ),
    ),
}
