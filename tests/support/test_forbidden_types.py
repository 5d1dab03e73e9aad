"""The lint rule finds each way to write a type that says nothing, and leaves ordinary text alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.forbidden_types import ROOT, findings_in, main, python_files

FORBIDDEN = {
    "imported": "from typing import Any\n",
    "imported under another name": "from typing import Any as Whatever\nx: Whatever = 1\n",
    "imported by way of a module of ours": "from ours import Any\n",
    "from typing_extensions": "from typing_extensions import Any\n",
    "imported with a star": "from typing import *\n",
    "imported in a TYPE_CHECKING block": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from typing import Any\n",
    "an attribute": "import typing\nx: typing.Any = 1\n",
    "an attribute of an alias": "import typing as t\nx: t.Any = 1\n",
    "an attribute of a later import": "def f(x: t.Any) -> None: ...\nimport typing as t\n",
    "inside a subscript": "import typing as t\nx: dict[str, t.Any] = {}\n",
    "by getattr": 'import typing\nx = getattr(typing, "Any")\n',
    "a quoted annotation": 'x: "Any" = 1\n',
    "a quoted attribute": 'def f(x: "typing.Any") -> None: ...\n',
    "a quoted generic": 'def f(x: "dict[str, Any]") -> None: ...\n',
    "quoted inside an annotation": 'x: list["Any"] = []\n',
    "a quoted result": 'def f() -> "Any | None": ...\n',
    "a quoted result of a coroutine": 'async def f() -> "Any": ...\n',
    "a quoted default position": 'def f(*args: "Any", **kw: "Any") -> None: ...\n',
    "a quoted alias": 'Table = dict[str, "Any"]\n',
    "a quoted TypeAlias": 'from typing import TypeAlias\nTable: TypeAlias = "dict[str, Any]"\n',
    "a bound": 'from typing import TypeVar\nT = TypeVar("T", bound="Any")\n',
    "cast": "from typing import cast\n",
    "cast under another name": "from typing import cast as sure\n",
    "cast as an attribute": "import typing\nx = typing.cast(int, 1)\n",
    "no_type_check": "from typing import no_type_check\n",
    "type: ignore": "x: int = '1'  # type: ignore\n",
    "type: ignore with a code": "x: int = '1'  # type: ignore[assignment]\n",
    "type:ignore without a blank": "x: int = '1'  #type:ignore\n",
    "type: ignore behind another comment": "x: int = '1'  # because # type: ignore\n",
    "type: ignore of a file": "# type: ignore\nx = 1\n",
    "pyright: ignore": "x: int = '1'  # pyright: ignore[reportAny]\n",
    "pyright: basic": "# pyright: basic\n",
    "mypy switched off for a file": "# mypy: ignore-errors\n",
    "a mypy check switched off for a file": '# mypy: disable-error-code="misc"\n',
}
FREE = {
    "object": "x: object = 1\n",
    "text that speaks of it": 'x = "from typing import Any"\n"""Any; # type: ignore"""\n',
    "a word in a comment": "# Any kind of cast, whatever the type\nx = 1\n",
    "a key that is called so": 'x = {"Any": 1}["Any"]\n',
    "a method called cast": "x = tensor.cast(1)\nfrom torch import cast\n",
    "any in lower case": "x = any([1])\n",
    "a Literal": 'from typing import Literal\nx: Literal["any", "what ever"] = "any"\n',
    "a comment that gives a type": "x = []  # type: list[int]\n",
}


@pytest.mark.parametrize("source", FORBIDDEN.values(), ids=FORBIDDEN)
def test_each_forbidden_form_is_reported(source: str) -> None:
    found = findings_in(source, Path("sample.py"))
    assert found, source
    assert all(str(finding).startswith(f"sample.py:{finding.line}:") for finding in found)


@pytest.mark.parametrize("source", FREE.values(), ids=FREE)
def test_ordinary_code_has_no_findings(source: str) -> None:
    assert findings_in(source, Path("sample.py")) == []


def test_a_finding_reports_its_line_and_column() -> None:
    (finding,) = findings_in("\nx = 1\nfrom typing import Any\n", Path("sample.py"))
    assert (finding.line, finding.column) == (3, 1)


def test_the_repository_has_no_forbidden_types(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out


def test_all_python_files_of_the_repository_are_checked(tmp_path: Path) -> None:
    read = {path.relative_to(ROOT).as_posix() for path in python_files([ROOT])}
    assert {"noxfile.py", "batchcal/__init__.py", "tests/conftest.py", "tests/support/forbidden_types.py"} <= read

    for name in (".nox/x/lib/a.py", "env/lib/b.py", "build/lib/c.py", "pkg/d.py", "pkg/deep/e.pyi", "pkg/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    assert [path.name for path in python_files([tmp_path])] == ["d.py", "e.pyi"]


def test_the_type_check_fails_on_a_finding_or_without_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    (tmp_path / "bad.py").write_text("from typing import Any\n")
    assert main([str(tmp_path)]) == 1
    assert "bad.py:1:1: `Any` is imported from typing" in capsys.readouterr().out
