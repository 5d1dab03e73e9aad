"""The project's manual: `nox -l` lists what can be done.

Plain `nox` takes a few minutes: run it before each commit. `nox -s full` runs all tests: about 45 minutes on two cores. CI runs
both.
One environment with torch (.nox/project) serves every session that needs it: torch is installed once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.10"
# pip and not uv: a wheel that pip is told of (find-links, an index of one's own) is found in every session alike.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "constraints.txt"
STARTING_PROCESSES = "child or cgroup or slow or gpu"
UNCOVERED = ("tests/faults", "tests/measure")
"""Tests that run without coverage: the others cover what these test, and these take up to twice as long under coverage."""
UNIT = ("--ignore=tests/docs", "-m", f"not ({STARTING_PROCESSES})")
COVERED = ("-m", "coverage", "run", "-m", "pytest", "--hypothesis-profile=full")
ONCE = os.environ.get("BATCHCAL_TESTS_ONCE") == "1"
"""CI runs `nox` and then `nox -s full`, both with this variable: the first runs its tests under coverage, and the second does not
repeat them."""
SOME_FAILED = 1
"""Exit code of pytest."""
FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
"""Where pytest notes what failed; after --cache-clear there is no such file while nothing did."""
WAITING_THREADS_SLEEP = {"OMP_WAIT_POLICY": "passive"}
"""Many processes share the cores: a thread that spins while it waits takes them from threads that work."""


def project_python(session: nox.Session) -> str:
    """The python of the one environment that has torch, made or brought up to date where it has to be."""
    home = ROOT / ".nox" / "project"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = home / "installed"
    if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
        shutil.rmtree(home, ignore_errors=True)
        session.run(sys.executable, "-m", "virtualenv", "--quiet", str(home), external=True)
        groups = ["--group", "test", "--group", "types", "--group", "imports"]
        session.run(
            str(python), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), "-e", str(ROOT), *groups, external=True
        )  # fmt: skip
        stamp.write_text(wanted)
    return str(python)


def in_project(
    session: nox.Session, *command: str, env: dict[str, str] | None = None, success_codes: tuple[int, ...] = (0,)
) -> None:
    """`python COMMAND` in the environment that has torch."""
    python = project_python(session)
    path = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])
    session.run(python, *command, env={"PATH": path} | (env or {}), external=True, success_codes=success_codes)


def test_processes(session: nox.Session, *command: str) -> None:
    """Run tests that start processes, two at a time. Those that fail run again, one at a time: other load must not decide."""
    # What failed in an earlier run is forgotten: pytest runs all tests where none of those is selected.
    in_project(session, *command, "-n", "2", "--cache-clear", env=WAITING_THREADS_SLEEP, success_codes=(0, SOME_FAILED))
    if FAILED.exists():
        in_project(session, *command, "--last-failed", env=WAITING_THREADS_SLEEP)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the unit tests and a choice of tests with real processes. `nox -s tests -- tests/detect -k cgroup` runs others."""
    if session.posargs:
        in_project(session, "-m", "pytest", *session.posargs, env=WAITING_THREADS_SLEEP)
        return
    if ONCE:
        in_project(session, "-m", "coverage", "erase")
    pytest = COVERED if ONCE else ("-m", "pytest")
    in_project(session, *pytest, *UNIT, "-n", "2", env=WAITING_THREADS_SLEEP)
    test_processes(session, *pytest, "--ignore=tests/docs", "-m", "smoke")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, layout, forbidden types (Any, cast, type: ignore) and language. `nox -s lint -- --fix` repairs what it can."""
    session.install("-c", str(CONSTRAINTS), "ruff")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))
    session.run("python", "tests/support/forbidden_types.py")
    session.run("python", "-m", "tests.support.plain_language")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check types with mypy --strict, tests included."""
    in_project(session, "-m", "mypy", *session.posargs)


@nox.session(venv_backend="none")
def imports(session: nox.Session) -> None:
    """Check that imports only go down the house (pyproject.toml, [tool.importlinter])."""
    in_project(session, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", *session.posargs)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Check the links, the help and the blocks of README and docs without running long commands."""
    in_project(session, "-m", "pytest", *(session.posargs or ["tests/docs", "-m", "not slow"]))


@nox.session(venv_backend="none", default=False)
def full(session: nox.Session) -> None:
    """Run all tests and require that they cover 92 % of the lines, child processes included; run README, docs, configs.

    About 45 minutes on two cores. `nox -s full -- tests/detect` measures what some tests cover.
    """
    if not ONCE:
        in_project(session, "-m", "coverage", "erase")
    if session.posargs:
        in_project(session, *COVERED, *session.posargs, env=WAITING_THREADS_SLEEP)
    else:
        if not ONCE:
            in_project(session, *COVERED, *UNIT, "-n", "2", env=WAITING_THREADS_SLEEP)
        others = ("--ignore=tests/docs", *(f"--ignore={folder}" for folder in UNCOVERED))
        processes = f"({STARTING_PROCESSES}) and not smoke" if ONCE else STARTING_PROCESSES
        test_processes(session, *COVERED, *others, "-m", processes)
        test_processes(session, "-m", "pytest", *UNCOVERED, "-m", processes)
    in_project(session, "-m", "coverage", "combine", "--quiet")
    # Some tests alone cover less than all of them.
    in_project(session, "-m", "coverage", "report", f"--fail-under={0 if session.posargs else 92}")
    if not session.posargs:
        # One after another: each block continues where the one above it ended.
        in_project(session, "-m", "pytest", "tests/docs", "-m", "slow")


@nox.session(venv_backend="none", default=False)
def soak(session: nox.Session) -> None:
    """Run 1,000 probes over tasks, limits and threads, count leftovers. `-- --probes 50` for fewer. Needs root."""
    in_project(session, "-m", "tests.benchmarks.soak", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure one thing side by side: `nox -s bench -- NAME [OPTIONS]`; without a NAME, list them."""
    files = (ROOT / "tests" / "benchmarks").glob("*.py")
    names = sorted(path.stem for path in files if not path.stem.startswith(("_", "test_", "finder_")))
    if not session.posargs or session.posargs[0] not in names:
        session.error(f"name one of: {', '.join(names)}")
    session.install("-c", str(CONSTRAINTS), "-e", ".", "--group", "test")
    # The opponents, as released. Kept out of the constraints: nothing else here needs them.
    session.install("torch==2.13.0", "lightning==2.6.6", "accelerate==1.15.0")
    session.run("python", "-m", f"tests.benchmarks.{session.posargs[0]}", *session.posargs[1:])


@nox.session(venv_backend="none", default=False)
def picture(session: nox.Session) -> None:
    """Redraw the picture in the README from a real calibration. Needs root and a memory cgroup."""
    in_project(session, "-m", "tests.docs.picture")
