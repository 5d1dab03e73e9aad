"""What holds for every test: nothing touches the real home, unit tests start no process, the others leave nothing behind."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from multiprocessing import util as multiprocessing_util
from pathlib import Path
from typing import Final, NoReturn

import pytest
from hypothesis import settings

from tests.support.cgroups import needs_memory_cgroup
from tests.support.leftovers import TOKEN, look, settled
from tests.support.smoke import SMOKE, smoke_choice
from tests.support.zygotes import LentZygote, lent

MAY_START_PROCESSES: Final = ("child", "cgroup", "slow", "gpu")
HOMES: Final = {
    "HOME": "home",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_DATA_HOME": "home/.local/share",
    "XDG_STATE_HOME": "home/.local/state",
}


settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("full", deadline=None, max_examples=200)
settings.load_profile("quick")  # `--hypothesis-profile=full` wins


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[SMOKE] = smoke_choice(items)  # before -m leaves any out
    for item in items:
        if item.get_closest_marker("cgroup") is not None:
            item.add_marker(needs_memory_cgroup)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not accelerator_here():
        pytest.skip("no accelerator here")


@functools.cache
def accelerator_here() -> bool:
    """Whether torch can use an accelerator; asked in a child, once."""
    question = "import sys, torch; sys.exit(not torch.accelerator.is_available())"
    return subprocess.run([sys.executable, "-c", question], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def zygote() -> Iterator[None]:
    """`probing` forks from one zygote for all tests that ask for this, but for those that say `own_zygote`."""
    lent.append(LentZygote())
    yield
    lent.pop().end()


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home and no setting from outside: neither a BATCHCAL_ variable nor the terminal's."""
    base = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in HOMES.items():
            (base / folder).mkdir(parents=True, exist_ok=True)
            patch.setenv(name, str(base / folder))
        for name in [name for name in os.environ if name.startswith("BATCHCAL_")]:
            patch.delenv(name)
        for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", "80")
        patch.setenv("LINES", "24")
        yield base / "home"


@pytest.fixture(autouse=True)
def nothing_by_accident(request: pytest.FixtureRequest, own_home: Path) -> Iterator[None]:
    """A test without a marker that allows it starts no process; one with such a marker leaves nothing behind."""
    if any(request.node.get_closest_marker(name) for name in MAY_START_PROCESSES):
        with pytest.MonkeyPatch.context() as patch:
            if request.node.get_closest_marker("slow"):
                # Whole commands, of which no line is their own: traced they take half as long again.
                patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
            yield from _leaves_nothing_behind()
    else:
        yield from _starts_no_process()


def _starts_no_process() -> Iterator[None]:
    def refuse(name: str) -> Callable[..., NoReturn]:
        def refused(*args: object, **kwargs: object) -> NoReturn:
            # Not an Exception: code that handles a failed start must not swallow it.
            pytest.fail(f"{name}: a unit test starts no process; mark the test with one of {', '.join(MAY_START_PROCESSES)}")

        return refused

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse("subprocess.Popen"))
        patch.setattr(subprocess.Popen, "__del__", lambda self: None)  # it would miss what __init__ sets
        patch.setattr(multiprocessing_util, "spawnv_passfds", refuse("multiprocessing"))
        for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "execv", "execve"):
            patch.setattr(os, name, refuse(f"os.{name}"), raising=False)
        yield


def _leaves_nothing_behind() -> Iterator[None]:
    # Short, for the sockets that may be made in it; of this test alone, so that tests running beside it are not seen.
    directory = Path(tempfile.mkdtemp(prefix="bc-"))
    token = uuid.uuid4().hex
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(directory))
            patch.setattr(tempfile, "tempdir", None)
            patch.setenv(TOKEN, token)
            before = look(token=token, directory=directory)
            yield
            left = settled(lambda: look(token=token, directory=directory), before)
        if left.lines():
            pytest.fail("left behind one second later:\n  " + "\n  ".join(left.lines()))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
