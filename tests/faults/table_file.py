"""Rows 35-50 of the table of faults: what meets the calibration's file, its key and its lock."""

from __future__ import annotations

from typing import Final

from tests.faults.row import Row

DISKS: Final = "calibration/test_disk_faults.py::"
SEAL: Final = "calibration/test_seal.py::"

FILE: Final[dict[int, Row]] = {
    35: Row(
        "the disk is full",
        (
            f"{DISKS}test_a_full_disk_keeps_the_old_calibration_and_the_journals_lines",
            "measure/test_calibrate_saving.py::test_a_calibration_that_cannot_be_saved_is_returned_with_the_reason",
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
}
