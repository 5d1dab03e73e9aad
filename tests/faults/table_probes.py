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
        in_faults("memory", "test_what_a_step_asks_beyond_the_budget_ends_at_the_fence"),
    ),
    2: Row(
        "a slow creep, or a leak, into the limit",
        in_faults("memory", "test_what_a_step_asks_beyond_the_budget_ends_at_the_fence"),
    ),
    3: Row(
        "RLIMIT_DATA cannot be set, or is set and not kept",
        (
            *in_faults("memory", "test_without_rlimits_the_watchdog_holds_alone_and_the_record_says_so"),
            "guard/limits/test_fence.py::test_a_limit_that_we_may_not_set_is_no_fence",
            "guard/limits/test_fence.py::test_a_limit_that_the_kernel_does_not_keep_is_found_out",
        ),
        "a kernel booted with ignore_rlimit_data: the call is made to do nothing instead",
    ),
    4: Row(
        "the kernel's OOM killer picks the child",
        (
            *in_faults("memory", "test_where_no_fence_holds_the_kernel_takes_the_child_and_not_the_larger_parent"),
            "measure/capacity/test_device_search.py::test_a_kill_by_the_kernel_doubles_the_margin",
        ),
    ),
    5: Row(
        "the kernel would pick the parent",
        (
            *in_faults("memory", "test_where_no_fence_holds_the_kernel_takes_the_child_and_not_the_larger_parent"),
            f"{CHILDREN}test_a_child_leads_its_own_group_and_volunteers_for_the_kernel",
        ),
    ),
    6: Row(
        "memory.oom.group: any kill by the kernel takes the container",
        in_faults("memory", "test_many_probes_of_which_many_do_not_fit_and_the_kernel_kills_none"),
        "the flag itself needs cgroup v2; that the kernel never has to kill is what can be shown, and every lab in a group does",
    ),
    7: Row(
        "workers' batches in shared memory overrun the group",
        in_faults(
            "workers", "test_workers_that_grow_and_batches_in_flight_end_at_the_watchdog", "test_batches_in_flight_are_demand"
        ),
    ),
    8: Row(
        "/dev/shm of 64 MiB",
        (
            *in_faults(
                "workers",
                "test_a_full_shared_memory_is_told_and_the_size_fits_without_workers",
                "test_no_batch_is_tried_that_shared_memory_cannot_hold",
            ),
            "measure/capacity/test_device_search.py::test_workers_and_prefetched_batches_must_fit_into_shared_memory",
            "detect/test_shared_memory.py::test_a_real_shared_memory_of_64_mib_is_seen_and_warned_of",
        ),
    ),
    9: Row(
        "names left in /dev/shm",
        (
            f"{CHILDREN}test_names_in_shared_memory_go_with_their_process",
            "guard/cleanup/test_shared_names.py::test_only_names_of_our_dead_processes_are_swept",
            *in_faults("workers", "test_workers_that_grow_and_batches_in_flight_end_at_the_watchdog"),
        ),
    ),
    10: Row("a worker is killed", in_faults("workers", "test_a_worker_that_dies_is_told_as_such_and_the_others_go_with_it")),
    11: Row("a worker segfaults", in_faults("workers", "test_a_worker_that_dies_is_told_as_such_and_the_others_go_with_it")),
    12: Row(
        "a worker leaves by os._exit or sys.exit, or raises",
        in_faults(
            "workers",
            "test_a_worker_that_dies_is_told_as_such_and_the_others_go_with_it",
            "test_what_a_worker_raises_is_the_user_s_with_his_own_traceback",
        ),
    ),
    13: Row(
        "a worker is stuck", in_faults("workers", "test_a_worker_that_is_stuck_ends_with_the_deadline_and_so_does_all_its_family")
    ),
    14: Row(
        "no more file descriptors",
        (
            *in_faults("workers", "test_too_few_descriptors_end_in_a_class_and_the_outcome_says_why"),
            "detect/test_advice.py::test_low_limits_of_files_and_processes_are_warned_of",
        ),
    ),
    15: Row(
        "a batch that cannot be pickled",
        in_faults("workers", "test_a_batch_that_cannot_travel_hangs_the_loader_and_the_outcome_says_why"),
    ),
    16: Row(
        "MemoryError of Python and numpy, ENOMEM of mmap",
        (
            *in_faults(
                "memory",
                "test_memory_that_is_not_torch_s_is_refused_and_recognised_too",
            ),
            *in_faults("user_code", "test_an_allocation_of_the_user_s_own_kind_is_not_taken_for_a_lack_of_memory"),
            "guard/children/test_memory_errors.py::test_every_message_is_told_for_what_it_is",
        ),
    ),
    17: Row(
        "oneDNN follows a null pointer after a failed small allocation",
        in_faults(
            "allocations",
            "test_any_allocation_that_fails_ends_in_a_class",
            "test_every_allocation_that_fails_ends_in_a_class",
        ),
    ),
    18: Row(
        "threads or processes cannot be created",
        in_faults(
            "environment", "test_threads_that_cannot_be_created_are_a_suspect", "test_workers_that_cannot_be_started_are_told"
        ),
    ),
    19: Row(
        "the k-th allocation fails, once or from then on",
        in_faults(
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
            *in_faults("allocations", "test_any_allocation_that_fails_ends_in_a_class"),
            *in_faults("environment", "test_a_disk_that_the_task_fills_costs_the_probe_and_is_told"),
        ),
    ),
    21: Row(
        "SIGKILL of the probe at any time",
        (
            *in_faults(
                "processes",
                "test_a_probe_that_is_killed_in_its_step_is_told_and_the_next_one_works",
                "test_many_kills_at_random_times_leave_one_outcome_each_and_nothing_behind",
            ),
            f"{CHILDREN}test_random_kills_leave_one_outcome_each_and_nothing_behind",
        ),
    ),
    22: Row(
        "SIGKILL or SIGSTOP of the zygote",
        (
            *in_faults(
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
            *in_faults("processes", "test_nothing_outlives_a_parent_that_is_killed_and_the_next_run_is_clean"),
            f"{CHILDREN}test_children_and_grandchildren_die_with_a_parent_that_is_killed",
        ),
    ),
    24: Row(
        "SIGTERM to the parent, also as process 1 of a container",
        (
            *in_faults("processes", "test_the_first_process_of_a_container_obeys_signals_and_takes_all_along"),
            "cli/test_process.py::test_a_signal_ends_a_calibration_in_one_line_and_keeps_what_was_measured",
        ),
    ),
    25: Row(
        "Ctrl-C",
        (
            *in_faults("processes", "test_the_first_process_of_a_container_obeys_signals_and_takes_all_along"),
            "cli/test_process.py::test_a_signal_ends_a_calibration_in_one_line_and_keeps_what_was_measured",
        ),
    ),
    26: Row(
        "SIGSTOP of the probe",
        (
            *in_faults("processes", "test_a_probe_that_is_stopped_ends_at_its_deadline_by_the_clock_on_the_wall"),
            f"{CHILDREN}test_a_stopped_child_ends_at_its_deadline_too",
        ),
    ),
    27: Row(
        "a pid is used again",
        in_faults("processes", "test_a_kill_that_comes_late_does_not_meet_the_stranger_who_has_the_pid_now"),
    ),
    28: Row(
        "a result file that is torn or rubbish",
        (
            *in_faults(
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
            *in_faults(
                "processes",
                "test_a_result_that_is_no_result_is_never_an_answer",
                "test_a_number_of_bytes_that_cannot_be_is_refused",
                "test_a_duration_that_cannot_be_is_refused",
            ),
            f"{ANSWERS}test_an_answer_that_cannot_be_used_is_ours_to_explain",
        ),
    ),
    30: Row(
        "the user's module raises, exits, leaves or crashes",
        (
            *in_faults(
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
            *in_faults("user_code", "test_a_module_that_starts_threads_and_openmp_at_import_works"),
            f"{CHILDREN}test_openmp_works_in_a_child",
        ),
    ),
    32: Row(
        "the user's code prints a gigabyte",
        (
            *in_faults(
                "user_code", "test_a_gigabyte_of_output_is_capped_and_blocks_nobody", "test_output_is_no_part_of_the_answer"
            ),
            f"{CHILDREN}test_megabytes_of_output_neither_block_nor_reach_the_result",
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
