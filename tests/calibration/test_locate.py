"""Each task has a calibration of its own in the project, and commands that name no task find the one that is meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchcal.calibration.locate import calibrations_in, existing_of, find_calibration, named_by, path_of, task_file
from batchcal.calibration.store import NAME, save
from batchcal.core.errors import UsageError
from batchcal.workload.spec.identity import TaskIdentity
from batchcal.workload.spec.reference import Scalar, TaskReference
from tests.support.calibrations import a_calibration


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    return folder


def a_task(folder: Path, spec: str = "train.py:task", **arguments: Scalar) -> TaskReference:
    return TaskReference(spec=spec, directory=str(folder), arguments=arguments)


def identity_of(reference: TaskReference) -> TaskIdentity:
    return a_calibration().task.model_copy(update={"spec": reference.spec, "arguments": reference.arguments})


def kept(reference: TaskReference, path: Path) -> Path:
    save(a_calibration(task=identity_of(reference)), path)
    return path


def test_a_file_is_named_after_its_task(project: Path) -> None:
    name = task_file(a_task(project))
    stem, _, digits = name.removesuffix(".json").rpartition("-")
    assert stem == "train.task"
    assert len(digits) == 8
    others = [a_task(project, "train.py:other"), a_task(project, "src/train.py:task"), a_task(project, horizon=24)]
    assert len({name, *map(task_file, others)}) == 4
    assert task_file(a_task(project, "my_package.models:build")).startswith("models.build-")


def test_the_file_name_does_not_depend_on_the_working_directory_or_the_copy(project: Path, tmp_path: Path) -> None:
    name = task_file(a_task(project))
    assert task_file(a_task(project, "./train.py:task")) == name
    assert task_file(a_task(project / "src", "../train.py:task")) == name
    assert task_file(a_task(tmp_path, f"{project}/train.py:task")) != "", "an absolute path from elsewhere is a task, too"
    copy = tmp_path / "copy"
    (copy / ".git").mkdir(parents=True)
    assert task_file(a_task(copy)) == name


@pytest.mark.parametrize("mark", ["batchcal.toml", "pyproject.toml", ".git"])
def test_a_calibration_is_stored_in_the_nearest_project_folder(tmp_path: Path, mark: str) -> None:
    inside = tmp_path / "project" / "src" / "deep"
    inside.mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "project" / mark).mkdir()
    assert path_of(a_task(inside), {}).parent == tmp_path / "project" / ".batchcal"


def test_batchcal_calibration_overrides_the_calibration_path(project: Path, own_home: Path) -> None:
    task = a_task(project)
    assert path_of(task, {"BATCHCAL_CALIBRATION": "/shared/c.json"}) == Path("/shared/c.json")
    assert path_of(task, {"BATCHCAL_CALIBRATION": "sub/c.json"}) == project / "sub" / "c.json"
    assert path_of(task, {"BATCHCAL_CALIBRATION": "~/c.json"}) == own_home / "c.json"
    assert path_of(task, {"BATCHCAL_CALIBRATION": ""}) == project / ".batchcal" / task_file(task)
    assert existing_of(task, {"BATCHCAL_CALIBRATION": "/shared/c.json"}) == Path("/shared/c.json")
    assert find_calibration(project, {"BATCHCAL_CALIBRATION": "/shared/c.json"}).path == Path("/shared/c.json")
    with pytest.raises(UsageError, match="BATCHCAL_CALIBRATION"):
        path_of(task, {"BATCHCAL_CALIBRATION": "~nobody-of-that-name/c.json"})


def test_each_project_that_cannot_be_written_has_its_own_cache_folder(own_home: Path) -> None:
    cache = own_home / ".cache" / "batchcal"
    net, fs = path_of(a_task(Path("/proc/sys/net")), {}), path_of(a_task(Path("/proc/sys/fs")), {})
    assert net.parent.parent == fs.parent.parent == cache
    assert net.parent.name.startswith("net-")
    assert net.parent != fs.parent


def test_a_calibration_file_of_an_earlier_version_is_read_for_its_own_task(project: Path) -> None:
    task = a_task(project)
    earlier = kept(task, project / ".batchcal" / NAME)
    assert existing_of(task, {}) == earlier
    assert existing_of(a_task(project, "other.py:task"), {}) != earlier, "that of another task is no stale one of this"
    own = kept(task, path_of(task, {}))
    assert existing_of(task, {}) == own


def test_a_calibration_in_a_read_only_image_is_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = a_task(project)
    baked_in = kept(task, path_of(task, {}))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert path_of(task, {}) != baked_in
    assert existing_of(task, {}) == baked_in
    newer = kept(task, path_of(task, {}))
    assert existing_of(task, {}) == newer


def test_the_only_calibration_is_selected_if_no_task_is_given(project: Path) -> None:
    missing = find_calibration(project, {}).path
    assert not missing.exists()
    assert missing.parent == project / ".batchcal"
    first = a_task(project)
    path = kept(first, path_of(first, {}))
    (project / ".batchcal" / "notes.json").write_text("{}")
    assert find_calibration(project, {}).path == path
    assert find_calibration(project / "src", {}).path == path


def test_the_configured_task_is_selected_even_if_only_another_is_calibrated(project: Path) -> None:
    """Before, a changed argument took the calibration of the smaller model: it is valid for its own arguments."""
    narrow = a_task(project, width=64)
    kept(narrow, path_of(narrow, {}))
    (project / "train.py").write_text("def task(width): ...\n")
    (project / "batchcal.toml").write_text('[task]\nspec = "train.py:task"\nargs = { width = 128 }\n')
    located = find_calibration(project, {})
    assert not located.path.exists()
    assert located.spec == "train.py:task"
    assert located.path == path_of(a_task(project, width=128), {})


def test_a_spec_uses_the_arguments_of_the_project_config(project: Path) -> None:
    wide = a_task(project, width=128)
    path = kept(wide, path_of(wide, {}))
    (project / "train.py").write_text("def task(width): ...\n")
    (project / "batchcal.toml").write_text('[task]\nspec = "train.py:task"\nargs = { width = 128 }\n')
    assert named_by("train.py:task", project, {}).path == path
    assert named_by("batchcal.toml", project, {}).path == path
    assert named_by("12:00/c.json", project, {}).path == Path("12:00/c.json"), "a colon makes no SPEC"


def test_the_same_module_name_in_another_folder_is_another_task(project: Path) -> None:
    assert task_file(a_task(project, "train:task")) != task_file(a_task(project / "src", "train:task"))


def test_folders_that_cannot_be_searched_have_no_calibration(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", forbidden)
    monkeypatch.setattr(Path, "is_file", forbidden)
    task = a_task(project)
    assert existing_of(task, {}) == path_of(task, {})
    assert calibrations_in(project) == []


def test_a_recalibrated_task_ignores_the_file_of_an_earlier_version(project: Path) -> None:
    task = a_task(project)
    kept(task, project / ".batchcal" / NAME)
    own = kept(task, path_of(task, {}))
    assert find_calibration(project, {}).path == own
    kept(a_task(project, "other.py:task"), project / ".batchcal" / NAME)
    with pytest.raises(UsageError, match="this project has 2 calibrations"):
        find_calibration(project, {})


def test_several_calibrations_without_a_configured_task_are_ambiguous(project: Path) -> None:
    tasks = [a_task(project), a_task(project, "other.py:task")]
    paths = [kept(task, path_of(task, {})) for task in tasks]
    assert sorted(calibrations_in(project)) == sorted(paths)
    with pytest.raises(UsageError, match="this project has 2 calibrations") as error:
        find_calibration(project, {})
    assert all(path.name in error.value.known for path in paths)
    assert "BATCHCAL_CALIBRATION=" in error.value.try_
    for name in ("train", "other"):
        (project / f"{name}.py").write_text("def task(): ...\n")
    assert [named_by(f"{name}.py:task", project, {}).path for name in ("train", "other")] == paths
    assert named_by("c.json", project, {}).path == Path("c.json")
    (project / "batchcal.toml").write_text('[task]\nspec = "other.py:task"\n')
    assert find_calibration(project, {}).path == paths[1]
