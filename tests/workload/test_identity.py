"""A task is the same task until its sources or arguments change; telling so imports nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchcal.core.errors import UsageError
from batchcal.workload.identity import TaskIdentity, identify
from batchcal.workload.reference import Scalar, TaskReference

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "train.py": "import torch, net\nfrom pkg import part\nfrom pkg.deep import *\ndef task():\n    import lazy, absent\n",
        "net.py": "from pkg.part import x\n",
        "lazy.py": "import train\n",
        "unused.py": "",
        "data.csv": "1,2\n",
        "pkg/__init__.py": "",
        "pkg/part.py": "from . import sibling\nfrom .. import too_far\nfrom ... import far_too_far\nx = 1\n",
        "pkg/sibling.py": "from .deep import y\n",
        "pkg/deep/__init__.py": "from ..other import z\n",
        "pkg/other.py": "",
        "pkg/unused.py": "",
        "loose/inner.py": "",
        ".venv/lib/site-packages/installed.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def identity(project: Path, spec: str = "train.py:task", **arguments: Scalar) -> TaskIdentity:
    return identify(TaskReference(spec=spec, directory=str(project), arguments=arguments))


EXPECTED = {
    "train.py", "net.py", "lazy.py", "pkg/__init__.py", "pkg/part.py", "pkg/sibling.py", "pkg/deep/__init__.py", "pkg/other.py",
}  # fmt: skip


@pytest.mark.parametrize("spec", ["train.py:task", "train:task", "./train.py:task"])
def test_every_module_of_the_project_that_it_imports_belongs_to_it(project: Path, spec: str) -> None:
    assert set(identity(project, spec).sources) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_edited_source_is_another_task(project: Path, name: str) -> None:
    before = identity(project)
    with (project / name).open("a") as file:
        file.write("# edited\n")
    after = identity(project)
    assert after.digest != before.digest
    assert {key for key in EXPECTED if after.sources[key] != before.sources[key]} == {name}


def test_neither_data_nor_touching_nor_other_files_change_it(project: Path) -> None:
    before = identity(project)
    (project / "data.csv").write_text("3,4\n")
    (project / "unused.py").write_text("changed = 1\n")
    (project / "pkg" / "unused.py").write_text("changed = 1\n")
    os.utime(project / "train.py", (1, 1))
    assert identity(project) == before


def test_arguments_and_the_factory_belong_to_it(project: Path) -> None:
    digests = [
        identity(project).digest,
        identity(project, width=1).digest,
        identity(project, width=2).digest,
        identity(project, width="1").digest,
        identity(project, width=True).digest,
        identity(project, "train.py:other").digest,
    ]
    assert len(set(digests)) == len(digests)


def test_the_place_of_the_project_does_not(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("moved") / "project"
    before = identity(project).digest
    project.rename(moved)
    assert identity(moved).digest == before


def test_a_package_runs_its_own_init(project: Path) -> None:
    assert set(identity(project, "pkg.part:task").sources) == {
        "pkg/__init__.py", "pkg/part.py", "pkg/sibling.py", "pkg/deep/__init__.py", "pkg/other.py",
    }  # fmt: skip
    assert set(identity(project, "pkg/other.py:task").sources) == {"pkg/__init__.py", "pkg/other.py"}


def test_a_folder_without_init_is_looked_into(project: Path) -> None:
    assert set(identity(project, "loose.inner:task").sources) == {"loose/inner.py"}
    (project / "one.py").write_text("from loose import inner\n")
    assert set(identity(project, "one:task").sources) == {"one.py", "loose/inner.py"}


def test_what_is_installed_is_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project / ".venv/lib/site-packages"))
    (project / "one.py").write_text("import installed, torch, pytest, batchcal.workload.task\n")
    assert set(identity(project, "one:task").sources) == {"one.py"}


def test_a_source_folder_on_the_path_belongs_to_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "src").mkdir()
    (project / "src" / "mine_alone.py").write_text("")
    (project / "one.py").write_text("import mine_alone\n")
    monkeypatch.syspath_prepend(str(project / "src"))
    assert set(identity(project, "one:task").sources) == {"one.py", "src/mine_alone.py"}


def test_a_file_that_python_cannot_read_still_has_an_identity(project: Path) -> None:
    for number, source in enumerate([b"def (:\n", b"x = '\0'\n", b"\xff\xfe\n"]):
        (project / f"bad{number}.py").write_bytes(source)
        assert set(identity(project, f"bad{number}.py:task").sources) == {f"bad{number}.py"}


def test_a_file_outside_of_the_project_is_known_by_its_name(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert set(identity(elsewhere, f"{project}/pkg/other.py:task").sources) == {"pkg.other"}


@pytest.mark.parametrize(
    ("spec", "what", "try_"),
    [
        ("trian:task", "there is no module trian", "train:task"),
        ("pkg.prat:task", "there is no module pkg.prat", "pkg.part:task"),
        ("pgk.part:task", "there is no module pgk", "pkg.part:task"),
        ("wholly_absent:task", "there is no module wholly_absent", "path/to/wholly_absent.py:task"),
        ("loose:task", "there is no module loose", "loose"),
        ("sys:exit", "there is no module sys", "sys"),
        ("gone.py:task", "there is no file gone.py", ".py:task"),
    ],
)
def test_what_is_not_there_is_said(project: Path, spec: str, what: str, try_: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        identity(project, spec)
    assert try_ in caught.value.try_


def test_an_example_is_known_by_the_names_of_its_modules(tmp_path: Path) -> None:
    here, there = (identity(folder, "batchcal.workload.examples.handwriting:task") for folder in (ROOT, tmp_path))
    assert here == there
    package = "batchcal.workload.examples"
    assert set(here.sources) == {package, f"{package}.handwriting", f"{package}.idx"}


@pytest.mark.child
def test_nothing_of_the_task_is_imported(project: Path) -> None:
    (project / "train.py").write_text("raise SystemExit('imported')\n")
    (project / "pkg" / "__init__.py").write_text("raise SystemExit('imported')\n")
    code = (
        "import sys; from pathlib import Path\n"
        "from batchcal.workload.find import reference_of; from batchcal.workload.identity import identify\n"
        "for spec in ('train.py:task', 'train:task', 'pkg.part:task', 'batchcal.workload.examples.handwriting:task'):\n"
        "    identify(reference_of(spec, directory=Path.cwd()))\n"
        "sys.exit(bool({'torch', 'train', 'pkg', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=project).returncode == 0


def test_folders_without_an_init_file_within_each_other_are_packages_too(tmp_path: Path) -> None:
    for name, text in {"train.py": "from a.b.net import x\nimport a.b.absent\n", "a/b/net.py": "", "a/c/net.py": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert set(identity(tmp_path).sources) == {"train.py", "a/b/net.py"}
