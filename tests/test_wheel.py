"""What users install: the wheel, built and put into an environment that is not this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import batchcal

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.child]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this checkout with the build backend that is installed, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages and its `bin`; torch and the rest come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel)],
        check=True,
        capture_output=True,
        text=True,
    )
    return folder


def outside(installed: Path, *command: str, cwd: Path) -> str:
    """Runs where the checkout cannot be imported; the installed package comes first on the path. Not counted by coverage."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTHON"))}
    environment = kept | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_contains_the_package_types_schema_and_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packaged = {name for name in names if name.startswith("batchcal/")}
    assert {"batchcal/py.typed", "batchcal/calibration/calibration.schema.json"} <= packaged
    assert [name for name in packaged if "idx" in name.lower()], "the handwriting example needs its IDX files"

    present = {path.relative_to(ROOT).as_posix() for path in (ROOT / "batchcal").rglob("*") if path.is_file()}
    assert {name for name in present if "__pycache__" not in name} == packaged


def test_the_wheel_contains_no_other_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"batchcal", f"batchcal-{batchcal.__version__}.dist-info"}


def test_the_wheel_does_not_pin_torch(wheel: Path) -> None:
    """The published metadata pins nothing; a constraints file is for CI."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(f"batchcal-{batchcal.__version__}.dist-info/METADATA"))
    requires = metadata.get_all("Requires-Dist", [])
    assert "torch>=2.13" in requires
    assert not [one for one in requires if "==" in one.split(";")[0]]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"


def test_the_command_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = outside(installed, sys.executable, "-c", "import batchcal; print(batchcal.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)
    assert batchcal.__version__ in outside(installed, str(installed / "bin" / "batchcal"), "--version", cwd=tmp_path)
    assert batchcal.__version__ in outside(installed, sys.executable, "-m", "batchcal", "--version", cwd=tmp_path)


def test_the_handwriting_example_calibrates_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """Its data comes out of the package, with nothing to download: a calibration without a checkout."""
    spec = "batchcal.workload.examples.handwriting:task"
    quick = ("--time-limit", "20s", "--max-batch", "8", "--allocator", "default", "--objective", "memory")
    command = [sys.executable, "-m", "batchcal", "calibrate", spec, *quick]
    outside(installed, *command, "--output", str(tmp_path / "calibration.json"), cwd=tmp_path)
    assert (tmp_path / "calibration.json").is_file()


def test_the_installed_library_provides_types(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import batchcal\nversion: int = batchcal.__version__\n")
    command = [sys.executable, "-m", "mypy", "--no-incremental", "script.py"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTHON"))}
    done = subprocess.run(
        command, cwd=tmp_path, env=kept | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False
    )
    assert 'has type "str", variable has type "int"' in done.stdout, done.stdout
