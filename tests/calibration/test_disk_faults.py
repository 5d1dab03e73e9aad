"""Real disks that are full, read-only or failing: the old calibration stays whole, and the error says which it was.

Each case runs in a child: in a mount namespace of its own with a small tmpfs, or under a library that lets a call fail.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batchcal.calibration.locate import task_file
from batchcal.workload.spec.reference import TaskReference
from tests.support.faults import faulty_environment

pytestmark = pytest.mark.child

ROOT = Path(__file__).parents[2]
needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare to mount a disk of its own"
)

PRELUDE = """
import json, os, subprocess, sys
from pathlib import Path
from batchcal.calibration.journal import Journal, read
from batchcal.calibration.keys import Trust
from batchcal.calibration.store import Loaded, load, save
from batchcal.core.errors import NotSaved, exit_code_of
from batchcal.core.files import leftovers
from tests.support.calibrations import MADE_AT, a_calibration, fingerprint, measurements, options

folder = Path(sys.argv[1])
path = folder / "calibration.json"

def attempt():
    before = path.read_bytes()
    try:
        save(a_calibration(notes=("the second one",)), path)
        told = {"exit_code": 0, "known": ""}
    except NotSaved as error:
        told = {"exit_code": exit_code_of(error), "known": error.known}
    found = load(path, trust=Trust())
    told["notes"] = list(found.calibration.notes) if isinstance(found, Loaded) else str(found)
    told["same"] = path.read_bytes() == before
    told["leftovers"] = len(list(leftovers(path)))
    return told
"""
FULL = """
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
save(a_calibration(), path)
journal = Journal.open(folder / "j.jsonl", fingerprint=fingerprint(), options=options(), at=MADE_AT)
journal.append(measurements()[0])
with open(folder / "ballast", "wb", buffering=0) as ballast:
    try:
        while ballast.write(b"x" * 512):
            pass
    except OSError:
        pass
told = attempt()
told["lines_refused"] = 0
# The last page of the journal takes a few more lines before the disk is asked for another one.
for number in range(2, 20):
    try:
        journal.append(measurements()[0].model_copy(update={"sequence": number}))
    except NotSaved:
        told["lines_refused"] += 1
kept = [one.sequence for one in read(journal.path, fingerprint(), at=MADE_AT).measurements]
told["lines_kept"] = len(kept)
(folder / "ballast").unlink()
journal.append(measurements()[0].model_copy(update={"sequence": 99}))
told["last"] = read(journal.path, fingerprint(), at=MADE_AT).measurements[-1].sequence
told["then"] = attempt()["exit_code"]
print(json.dumps(told))
"""
READ_ONLY = """
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True)
save(a_calibration(), path)
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
print(json.dumps(attempt()))
"""
ONE_FILE_MOUNTED = """
save(a_calibration(), path)
(folder / "source").write_bytes(path.read_bytes())
subprocess.run(["mount", "--bind", folder / "source", path], check=True)
print(json.dumps(attempt()))
"""
BAKED_IN = """
from batchcal.calibration.locate import existing_of, path_of, task_file
from batchcal.workload.spec.reference import TaskReference
task = TaskReference(spec="train.py:task", directory=str(folder))
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True)
(folder / "pyproject.toml").touch()
save(a_calibration(), path_of(task, {}))
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
cache = path_of(task, {})
told = {"reads": str(existing_of(task, {}).relative_to(folder)), "writes_inside": cache.is_relative_to(folder)}
save(a_calibration(), cache)
print(json.dumps({**told, "then_reads_the_new_one": existing_of(task, {}) == cache}))
"""
PLAIN = """
print(json.dumps(attempt()))
"""


def told_by(command: list[str], program: str, folder: Path, environment: dict[str, str] | None = None) -> dict[str, object]:
    done = subprocess.run(
        [*command, sys.executable, "-c", PRELUDE + program, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: object = json.loads(done.stdout)
    assert isinstance(told, dict)
    return told


def old_and_whole(told: dict[str, object], known: str) -> bool:
    assert told["known"] == known
    assert told["exit_code"] == 7
    assert told["leftovers"] == 0
    return told["same"] is True and told["notes"] == ["glibc repeats its peak within 5-8 %"]


@needs_mounts
def test_a_full_disk_keeps_the_old_calibration_and_the_journals_lines(tmp_path: Path) -> None:
    told = told_by(["unshare", "-m"], FULL, tmp_path)

    assert old_and_whole(told, "the disk is full")
    assert told["lines_refused"] != 0
    assert isinstance(told["lines_kept"], int)
    assert isinstance(told["lines_refused"], int)
    assert told["lines_kept"] + told["lines_refused"] == 19
    assert (told["last"], told["then"]) == (99, 0)


@needs_mounts
def test_a_read_only_disk_keeps_the_old_calibration(tmp_path: Path) -> None:
    told = told_by(["unshare", "-m"], READ_ONLY, tmp_path)

    assert old_and_whole(told, "the file system is read-only")


@needs_mounts
def test_a_calibration_file_that_is_a_mount_point_is_not_overwritten(tmp_path: Path) -> None:
    told = told_by(["unshare", "-m"], ONE_FILE_MOUNTED, tmp_path)

    assert old_and_whole(told, "the file is a mount point and cannot be replaced; mount its folder instead")


@needs_mounts
def test_a_read_only_project_reads_its_calibration_and_writes_to_the_cache(tmp_path: Path) -> None:
    told = told_by(["unshare", "-m"], BAKED_IN, tmp_path)

    name = task_file(TaskReference(spec="train.py:task", directory=str(tmp_path)))
    assert told == {
        "reads": f".batchcal/{name}",
        "writes_inside": False,
        "then_reads_the_new_one": True,
    }


@pytest.mark.parametrize(("call", "error"), [("fsync", "EIO"), ("rename", "EIO"), ("fsync", "ENOSPC"), ("rename", "EDQUOT")])
def test_a_failing_disk_keeps_the_old_calibration(tmp_path: Path, call: str, error: str) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    told_by([], "save(a_calibration(), path)\nprint('{}')", folder)

    told = told_by([], PLAIN, folder, faulty_environment(tmp_path, {call: error}))

    why = {"EIO": "Input/output error", "ENOSPC": "the disk is full", "EDQUOT": "the disk quota is used up"}
    assert old_and_whole(told, why[error])


def test_a_failed_folder_sync_is_an_error_although_the_new_file_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    told_by([], "save(a_calibration(), path)\nprint('{}')", folder)

    told = told_by([], PLAIN, folder, faulty_environment(tmp_path, {"fsync": "EIO"}, after=1))

    assert (told["exit_code"], told["known"]) == (7, "Input/output error")
    assert (told["notes"], told["leftovers"]) == (["the second one"], 0)
