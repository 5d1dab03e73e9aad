"""A task is the same task until its code or arguments change; finding out imports nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.workload.spec.identity import TaskIdentity, identify
from batchcal.workload.spec.reference import Scalar, TaskReference

ROOT = Path(__file__).resolve().parents[3]


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
def test_a_task_includes_every_project_module_that_it_imports(project: Path, spec: str) -> None:
    assert set(identity(project, spec).sources) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_edited_source_file_changes_the_task_digest(project: Path, name: str) -> None:
    before = identity(project)
    with (project / name).open("a") as file:
        file.write("edited = 1\n")
    after = identity(project)
    assert after.digest != before.digest
    assert {key for key in EXPECTED if after.sources[key] != before.sources[key]} == {name}


def test_data_files_timestamps_and_unused_modules_do_not_change_the_task(project: Path) -> None:
    before = identity(project)
    (project / "data.csv").write_text("3,4\n")
    (project / "unused.py").write_text("changed = 1\n")
    (project / "pkg" / "unused.py").write_text("changed = 1\n")
    os.utime(project / "train.py", (1, 1))
    assert identity(project) == before


def test_arguments_and_the_factory_name_change_the_task_digest(project: Path) -> None:
    digests = [
        identity(project).digest,
        identity(project, width=1).digest,
        identity(project, width=2).digest,
        identity(project, width="1").digest,
        identity(project, width=True).digest,
        identity(project, "train.py:other").digest,
    ]
    assert len(set(digests)) == len(digests)


def test_moving_the_project_does_not_change_the_task_digest(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("moved") / "project"
    before = identity(project).digest
    project.rename(moved)
    assert identity(moved).digest == before


def test_a_module_in_a_package_includes_the_init_file(project: Path) -> None:
    assert set(identity(project, "pkg.part:task").sources) == {
        "pkg/__init__.py", "pkg/part.py", "pkg/sibling.py", "pkg/deep/__init__.py", "pkg/other.py",
    }  # fmt: skip
    assert set(identity(project, "pkg/other.py:task").sources) == {"pkg/__init__.py", "pkg/other.py"}


def test_a_folder_without_an_init_file_is_searched_for_modules(project: Path) -> None:
    assert set(identity(project, "loose.inner:task").sources) == {"loose/inner.py"}
    (project / "one.py").write_text("from loose import inner\n")
    assert set(identity(project, "one:task").sources) == {"one.py", "loose/inner.py"}


def test_installed_packages_are_not_part_of_the_task(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project / ".venv/lib/site-packages"))
    (project / "one.py").write_text("import installed, torch, pytest, batchcal.workload.task\n")
    assert set(identity(project, "one:task").sources) == {"one.py"}


def test_a_project_folder_on_sys_path_is_part_of_the_task(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "src").mkdir()
    (project / "src" / "mine_alone.py").write_text("")
    (project / "one.py").write_text("import mine_alone\n")
    monkeypatch.syspath_prepend(str(project / "src"))
    assert set(identity(project, "one:task").sources) == {"one.py", "src/mine_alone.py"}


@pytest.mark.parametrize("source", [b"def (:\n", b"x = '\0'\n", b"\xff\xfe\n"])
@pytest.mark.parametrize("spec", ["bad.py:task", "bad:task"])
def test_a_factory_file_with_invalid_python_is_a_user_error(project: Path, source: bytes, spec: str) -> None:
    (project / "bad.py").write_bytes(source)
    with pytest.raises(UserCodeError, match=r"bad\.py is not valid Python: ") as caught:
        identity(project, spec)
    assert caught.value.known
    assert caught.value.try_ == "correct bad.py at that line, then run the same command"


def test_a_syntax_error_shows_the_line(project: Path) -> None:
    (project / "bad.py").write_text("x = 1\ndef task(:\n")
    with pytest.raises(UserCodeError) as caught:
        identity(project, "bad.py:task")
    assert [line.strip() for line in caught.value.known.splitlines()][:2] == ['File "bad.py", line 2', "def task(:"]


def test_an_imported_file_with_invalid_python_is_compared_by_its_bytes(project: Path) -> None:
    before = identity(project)
    (project / "lazy.py").write_text("print 'Python 2'\n")
    after = identity(project)
    assert after.digest != before.digest
    (project / "lazy.py").write_text("print 'Python 2'  # a comment\n")
    assert identity(project).digest != after.digest


EDITS = {
    "a comment": "import net  # for the model\n\n\ndef task(width = 1):\n    return net.x\n",
    "docstrings": '"""Module."""\nimport net\ndef task(width=1):\n    """A task."""\n    return net.x\n',
    "formatting": "import net\ndef task(\n    width=(1),\n):\n    return (net\n      .x)\n",
    "another quote or base": "import net\ndef task(width=0x1):\n    return net.x\n",
}


@pytest.mark.parametrize("edited", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("name", ["train.py", "pkg/part.py"])
def test_comments_docstrings_and_formatting_do_not_change_the_task(project: Path, name: str, edited: str) -> None:
    (project / name).write_text("import net\ndef task(width=1):\n    return net.x\n")
    before = identity(project)
    (project / name).write_text(edited)
    assert identity(project).digest == before.digest
    (project / name).write_text(edited.replace("return", "yield"))
    assert identity(project).digest != before.digest


def test_an_annotated_string_is_not_a_docstring(project: Path) -> None:
    (project / "train.py").write_text("def task():\n    x = 'one'\n")
    before = identity(project)
    (project / "train.py").write_text("def task():\n    x = 'two'\n")
    assert identity(project).digest != before.digest


@pytest.mark.parametrize(
    ("start", "spec"),
    [
        (".", "train.py:task"),
        (".", "./train.py:task"),
        (".", "train:task"),
        ("pkg", "../train.py:task"),
        ("/", "{}/train.py:task"),
    ],
)
def test_the_task_digest_does_not_depend_on_the_working_directory(project: Path, start: str, spec: str) -> None:
    assert identity(project / start, spec.format(project)).digest == identity(project).digest


def test_a_project_copy_has_the_same_task_digest_and_records_its_folder(project: Path, tmp_path: Path) -> None:
    here = identity(project)
    copy = shutil.copytree(project, tmp_path.parent / f"{tmp_path.name}-copy")
    there = identity(copy)
    assert there.digest == here.digest
    assert (here.folder, there.folder) == (str(project), str(copy))


def test_a_task_file_outside_the_project_includes_its_package(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert set(identity(elsewhere, f"{project}/pkg/other.py:task").sources) == {"pkg/__init__.py", "pkg/other.py"}


def test_relative_imports_in_a_folder_without_init_are_followed(project: Path) -> None:
    (project / "plain").mkdir()
    (project / "plain" / "train.py").write_text("from .model import Net\nfrom . import helper\nfrom ..net import x\n")
    (project / "plain" / "model.py").write_text("from .layers import Layer\n")
    for name in ("helper", "layers"):
        (project / "plain" / f"{name}.py").write_text("")
    names = {"train.py", "model.py", "helper.py", "layers.py", "net.py", "pkg/__init__.py", "pkg/part.py"}
    assert names <= set(identity(project, "plain/train.py:task").sources)


def test_identifying_a_task_takes_time_linear_in_the_file_length(project: Path) -> None:
    def cost_of(lines: int) -> float:
        (project / "train.py").write_text("def task(a, b):\n" + "    x = a + b * 2\n" * lines)
        began = time.process_time()
        identity(project)
        return time.process_time() - began

    assert min(cost_of(20_000) for _ in range(2)) < 8 * min(cost_of(5_000) for _ in range(2)), "4 is linear, 16 is quadratic"


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
def test_a_missing_module_or_file_is_an_error_with_a_suggestion(project: Path, spec: str, what: str, try_: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        identity(project, spec)
    assert try_ in caught.value.try_


def test_an_example_task_is_identified_by_its_module_names(tmp_path: Path) -> None:
    here, there = (identity(folder, "batchcal.workload.examples.handwriting:task") for folder in (ROOT, tmp_path))
    assert here == there
    package = "batchcal.workload.examples"
    assert set(here.sources) == {package, f"{package}.handwriting", f"{package}.idx"}


@pytest.mark.child
def test_identifying_a_task_does_not_import_it(project: Path) -> None:
    (project / "train.py").write_text("raise SystemExit('imported')\n")
    (project / "pkg" / "__init__.py").write_text("raise SystemExit('imported')\n")
    code = (
        "import sys; from pathlib import Path\n"
        "from batchcal.workload.spec.target import reference_of; from batchcal.workload.spec.identity import identify\n"
        "for spec in ('train.py:task', 'train:task', 'pkg.part:task', 'batchcal.workload.examples.handwriting:task'):\n"
        "    identify(reference_of(spec, directory=Path.cwd()))\n"
        "sys.exit(bool({'torch', 'train', 'pkg', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=project).returncode == 0


def test_nested_folders_without_init_files_are_packages(tmp_path: Path) -> None:
    for name, text in {"train.py": "from a.b.net import x\nimport a.b.absent\n", "a/b/net.py": "", "a/c/net.py": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert set(identity(tmp_path).sources) == {"train.py", "a/b/net.py"}
