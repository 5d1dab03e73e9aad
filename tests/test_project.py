"""The project keeps its own promises: what holds for every test really holds, and its files agree with one another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from platformdirs import user_cache_path, user_config_path

import batchcal
from tests.support.leftovers import Leftovers, look, settled

ROOT = Path(__file__).resolve().parents[1]


def test_each_test_has_its_own_home_folder(own_home: Path) -> None:
    assert Path.home() == own_home
    assert user_config_path("batchcal").is_relative_to(own_home)
    assert user_cache_path("batchcal").is_relative_to(own_home)
    assert not [name for name in os.environ if name.startswith("BATCHCAL_")]


def _nothing() -> None:
    return None


STARTS: dict[str, Callable[[], object]] = {
    "subprocess.Popen": lambda: subprocess.Popen(["true"]),
    "subprocess.run": lambda: subprocess.run(["true"], check=False),
    "os.fork": lambda: os.fork(),  # noqa: PLW0108 - os.fork is replaced later
    "os.system": lambda: os.system("true"),
    "os.posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], os.environ),
    "os.execv": lambda: os.execv("/bin/true", ["true"]),
    "os.execvp": lambda: os.execvp("true", ["true"]),
    "multiprocessing, fork": lambda: multiprocessing.get_context("fork").Process(target=_nothing).start(),
    "multiprocessing, spawn": lambda: multiprocessing.get_context("spawn").Process(target=_nothing).start(),
}


@pytest.mark.parametrize("way", STARTS)
def test_a_unit_test_cannot_start_a_process(way: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="a unit test starts no process"):
        STARTS[way]()


@contextlib.contextmanager
def _mess(kind: str, directory: Path) -> Iterator[str]:
    """Leaves something behind until the end of the block; yields what it should be called."""
    if kind == "processes":
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
            yield str(process.pid)
            process.kill()
    elif kind == "orphans":
        code = "import subprocess as s; print(s.Popen(['sleep', '60'], stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
        pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
        yield str(pid)
        os.kill(pid, signal.SIGKILL)
    elif kind == "zombies":
        pid = os.posix_spawn("/bin/true", ["true"], os.environ)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        yield str(pid)
        os.waitpid(pid, 0)
    elif kind == "descriptors":
        with (directory / "kept open").open("w") as file:
            yield f"{file.fileno()} ->"
    elif kind == "shared_memory":
        path = Path("/dev/shm/torch_999999999_1_0")
        path.touch()
        yield path.name
        path.unlink()
    else:
        with tempfile.TemporaryDirectory(prefix="batchcal-") as made:
            yield Path(made).name


@pytest.mark.smoke
@pytest.mark.child
@pytest.mark.parametrize("kind", ["processes", "orphans", "zombies", "descriptors", "shared_memory", "files"])
def test_each_kind_of_leftover_is_detected(kind: str, tmp_path: Path) -> None:
    token, directory = os.environ["LEFTOVERS_TOKEN"], Path(tempfile.gettempdir())
    before = look(token=token, directory=directory)
    with _mess(kind, tmp_path) as name:
        left = settled(lambda: look(token=token, directory=directory), before, seconds=0)
        named = vars(left)["processes" if kind == "orphans" else kind]
        assert any(one.startswith(name) for one in named), left.lines()
    assert settled(lambda: look(token=token, directory=directory), before) == Leftovers()


@pytest.mark.child
def test_a_test_that_leaves_a_process_behind_fails(tmp_path: Path) -> None:
    """The check of conftest.py at work, in a pytest of its own."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_untidy.py").write_text(
        "import subprocess, pytest\n"
        "started = []\n"
        "@pytest.mark.child\n"
        "def test_untidy() -> None:\n"
        "    started.append(subprocess.Popen(['sleep', '60']))\n"
        "@pytest.mark.child\n"
        "def test_tidy() -> None:\n"
        "    started[0].kill(); started[0].wait()\n"
    )
    here = [f"--rootdir={tmp_path}", f"--basetemp={tmp_path / 'base'}", str(tmp_path)]
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), *here]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=_environment_without_coverage())
    assert "2 passed, 1 error" in done.stdout, done.stdout
    assert "processes: " in done.stdout, done.stdout
    assert "sleep 60" in done.stdout


def _environment_without_coverage() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")} | {"PYTHONPATH": str(ROOT)}


@pytest.mark.smoke
@pytest.mark.child
def test_nox_lists_every_session_with_a_description() -> None:
    listing = subprocess.run([sys.executable, "-m", "nox", "-l"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    sessions = [line[2:].split(" -> ") for line in listing.splitlines() if line[:2] in {"* ", "- "} and " -> " in line]
    by_default = [line[2:].split(" -> ")[0] for line in listing.splitlines() if line.startswith("* ")]
    assert by_default == ["tests", "lint", "types", "imports", "docs"]
    assert {name for name, _ in sessions} == {*by_default, "full", "soak", "bench", "picture"}
    assert all(description.strip() for _, description in sessions)


def test_ci_runs_the_documented_test_command_and_then_all_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-2:] == ["python -m pip install nox && python -m nox", "python -m nox -s full"]


def test_the_changelog_contains_the_version() -> None:
    assert f"## [{batchcal.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned_for_ci_but_not_for_users() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = dict(
        line.lower().replace("_", "-").split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert pins["torch"] == "2.13.0"
    groups = project["dependency-groups"].values()
    wanted = [*project["project"]["dependencies"], *(one for group in groups for one in group if isinstance(one, str))]
    for requirement in wanted:
        name = requirement.split(">=")[0]
        assert name in pins, f"{name} is not in constraints.txt"
    assert all("==" not in requirement for requirement in project["project"]["dependencies"])
