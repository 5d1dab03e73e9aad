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
            f"{DISKS}test_a_read_only_project_reads_its_calibration_and_writes_to_the_cache",
        ),
    ),
    37: Row(
        "SIGKILL of the writer beside readers",
        (
            "calibration/test_kills.py::test_killing_the_writer_200_times_never_corrupts_or_loses_a_calibration",
            "core/test_files.py::test_temporary_files_of_killed_writers_are_removed_after_an_hour",
        ),
    ),
    38: Row(
        "fsync or rename fails",
        (
            f"{DISKS}test_a_failing_disk_keeps_the_old_calibration",
            f"{DISKS}test_a_failed_folder_sync_is_an_error_although_the_new_file_is_complete",
        ),
    ),
    39: Row("the file is cut at any byte", (f"{SEAL}test_a_file_truncated_at_any_byte_is_rejected",)),
    40: Row("any bit is flipped", (f"{SEAL}test_every_single_flipped_bit_is_detected",)),
    41: Row(
        "another key, or none",
        (
            f"{SEAL}test_a_file_with_an_unverified_signature_is_accepted_with_a_notice",
            f"{SEAL}test_a_configured_key_or_required_signature_rejects_other_signers",
            f"{SEAL}test_a_forged_signature_with_our_key_id_is_always_rejected",
        ),
    ),
    42: Row(
        "another version, unknown fields",
        (
            f"{SEAL}test_a_newer_format_is_reported_before_its_seal_is_checked",
            f"{SEAL}test_fields_of_a_later_version_are_preserved_by_a_round_trip",
        ),
    ),
    43: Row(
        "hostile JSON",
        (
            f"{SEAL}test_other_json_documents_are_malformed_calibrations",
            "calibration/test_fuzz.py::test_random_bytes_are_rejected",
            "calibration/test_fuzz.py::test_any_value_in_a_sealed_document_is_read_without_an_exception",
        ),
    ),
    44: Row(
        "a symlink, FIFO, device or folder in the file's place",
        (
            "calibration/test_store.py::test_a_symlink_is_rejected_and_its_target_is_not_modified",
            "calibration/test_store.py::test_a_fifo_a_device_and_a_folder_are_rejected_as_calibrations",
        ),
    ),
    45: Row(
        "folders and files that others may write or own",
        (
            "calibration/test_store.py::test_a_world_writable_calibration_is_rejected",
            "calibration/test_store.py::test_a_calibration_of_another_user_is_rejected",
            "calibration/test_store.py::test_a_calibration_in_a_world_writable_folder_is_accepted_with_a_notice",
        ),
    ),
    46: Row(
        "a clock that is wrong",
        (
            "calibration/test_freshness.py::test_a_calibration_expires_after_a_week",
            "calibration/test_freshness.py::test_a_clock_set_back_makes_a_calibration_future_dated",
        ),
    ),
    47: Row(
        "eight replicas start at once",
        ("calibration/test_replicas.py::test_one_of_eight_concurrent_replicas_calibrates_and_seven_read_it",),
    ),
    48: Row(
        "the holder of the lock is killed",
        ("core/test_lock.py::test_a_killed_holder_releases_the_lock_even_if_its_child_still_runs",),
    ),
    49: Row(
        "a file system without locks",
        (
            "core/test_lock.py::test_a_file_system_without_locks_produces_a_notice_and_no_error",
            "calibration/test_replicas.py::test_without_file_locks_each_replica_calibrates_and_the_result_is_valid",
        ),
    ),
    50: Row(
        "a process started meanwhile holds the lock on",
        ("core/test_lock.py::test_a_killed_holder_releases_the_lock_even_if_its_child_still_runs",),
    ),
}
