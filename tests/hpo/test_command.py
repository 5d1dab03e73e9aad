"""`batchcal hpo` as its users meet it: a command in a folder with a config and a task."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tests.support.children import REPOSITORY

pytestmark = pytest.mark.child

CONFIG = """\
[task]
spec = "tasks.py:task"
[task.args]
{arguments}
[calibrate]
allocator = "default"
time_limit = "4s"
workers = 0
max_batch = 100
[plan]
effective_batch = 32
[train]
epochs = {epochs}
[hpo]
study = "{study}"
trials = {trials}
metric = "mse"
{more}
[hpo.space]
{space}
"""
SPACE = """\
learning_rate = { kind = "log_uniform", low = 0.01, high = 0.3 }
batch_size = { kind = "categorical", choices = [16, 60] }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder. Its studies share the calibrations of their shapes, as studies of one task do."""
    folder = tmp_path_factory.mktemp("studies")
    shutil.copy(REPOSITORY / "tests" / "hpo" / "tasks.py", folder)
    return folder


class Study:
    """A config in `home`, and what is done with it."""

    def __init__(
        self,
        home: Path,
        name: str,
        *,
        trials: int = 5,
        epochs: int = 6,
        space: str = SPACE,
        arguments: str = "",
        more: str = "",
    ) -> None:
        self.home, self.name = home, name
        text = CONFIG.format(study=name, trials=trials, epochs=epochs, space=space, arguments=arguments, more=more)
        (self.home / f"{self.name}.toml").write_text(text, encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        verb, *rest = arguments
        return [sys.executable, "-m", "batchcal", *verb.split(), f"{self.name}.toml", *rest]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments)
        return subprocess.run(command, cwd=self.home, capture_output=True, text=True, check=False, timeout=180)

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command("hpo run", *arguments), cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def seen(self) -> Mapping[str, object]:
        told: dict[str, object] = json.loads(self("hpo status", "--json").stdout)
        return told

    def trials(self) -> list[dict[str, object]]:
        trials = self.seen()["trials"]
        assert isinstance(trials, list)
        return trials

    def wait_until(self, *states: str, least: int = 1, limit_s: float = 90) -> None:
        """Until so many trials are in one of `states`."""
        until = time.monotonic() + limit_s
        while True:
            result = self("hpo status", "--json")
            if result.returncode == 0:
                counts: dict[str, int] = json.loads(result.stdout)["counts"]
                if sum(counts.get(state, 0) for state in states) >= least:
                    return
            assert time.monotonic() < until, f"not {least} {states} after {limit_s} s:\n{result.stdout}{result.stderr}"
            time.sleep(0.2)


def members(leader: subprocess.Popen[str]) -> list[psutil.Process]:
    """Workers of a command."""
    return psutil.Process(leader.pid).children()


@pytest.mark.smoke("job:batchcal.hpo.trials.job:run_trial")
def test_a_study_of_two_trials_completes(home: Path) -> None:
    result = Study(home, "short", trials=2, epochs=1)("hpo run", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["counts"] == {"complete": 2}


def test_a_study_runs_all_trials_and_reports_its_result(home: Path) -> None:
    study = Study(home, "whole")
    result = study("hpo run")
    assert result.returncode == 0, result.stderr
    assert "5 of 5" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0].startswith("study_started study=whole trials=5 done=0 workers=1")
    assert sum(line.startswith("trial_ended") for line in lines) == 5
    assert lines[-1].startswith("next: batchcal hpo best whole.toml --train")
    told = study.seen()
    assert (told["done"], told["wanted"], told["metric"]) == (5, 5, "mse")
    for trial in study.trials():
        facts, parameters = trial["facts"], trial["parameters"]
        assert isinstance(facts, dict)
        assert isinstance(parameters, dict)
        assert facts["effective_batch"] == parameters["batch_size"]
    best = study("hpo best", "--json")
    values = [trial["value"] for trial in study.trials() if trial["state"] == "complete"]
    assert json.loads(best.stdout)["value"] == min(value for value in values if isinstance(value, float))
    again = study("hpo run")
    assert again.returncode == 0
    assert "trial_started" not in again.stderr, "it is done"
    page = study("show", "--html", "whole.html")
    assert page.returncode == 0
    assert "<svg" in (home / "whole.html").read_text(encoding="utf-8")
    trained = study("hpo best", "--train", "--json")
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["epochs"], "the winner was trained"


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_its_trial_is_run_again(home: Path) -> None:
    study = Study(home, "killed", trials=6, epochs=20, arguments="samples = 1000")
    command = study.started("--workers", "2")
    study.wait_until("running", least=2)
    members(command)[0].kill()
    out, err = command.communicate(timeout=180)
    assert command.returncode == 0, err
    assert "worker_died" in err
    assert "killed by SIGKILL" in err
    assert "6 of 6" in out
    trials = study.trials()
    lost = [trial["number"] for trial in trials if trial["state"] == "lost"]
    assert [trial["again"] for trial in trials if trial["again"] is not None] == lost
    assert len(trials) == 6 + len(lost), "none is run twice but the one whose worker died"
    assert {trial["state"] for trial in trials} <= {"complete", "pruned", "lost"}


@pytest.mark.slow
def test_a_study_continues_after_a_signal(home: Path) -> None:
    study = Study(home, "signal", trials=3, epochs=40, arguments="samples = 1000")
    command = study.started()
    study.wait_until("running")
    time.sleep(1)
    workers = members(command)
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130, err
    assert not any(worker.is_running() for worker in workers)
    assert "continues the study" in err
    assert not [trial for trial in study.trials() if trial["state"] == "running"]
    finished = study("hpo run")
    assert finished.returncode == 0, finished.stderr
    trials = study.trials()
    assert sum(trial["state"] != "stopped" for trial in trials) == 3


@pytest.mark.slow
def test_workers_end_with_their_parent_and_the_study_continues(home: Path) -> None:
    study = Study(home, "leader", trials=3, epochs=40, arguments="samples = 1000")
    command = study.started("--workers", "2")
    study.wait_until("running", least=2)
    workers = members(command)
    command.kill()
    command.communicate()
    _, left = psutil.wait_procs(workers, timeout=20)
    assert left == []
    finished = study("hpo run")
    assert finished.returncode == 0, finished.stderr
    assert sum(trial["state"] not in ("stopped", "lost") for trial in study.trials()) == 3


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare for a container")
def test_another_container_reruns_the_trial_of_a_killed_container(home: Path) -> None:
    study = Study(home, "moved", trials=3, epochs=80, arguments="samples = 1000")
    contained = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c"]
    # What it has for temporary files goes with it; the study is on a volume.
    script = f'hostname pod-1 && mount -t tmpfs none "$TMPDIR" && exec {shlex.join(study.command("hpo run"))}'
    pod = subprocess.Popen([*contained, script], cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    study.wait_until("running")
    joined = study.started()
    study.wait_until("running", least=2)
    assert not [trial for trial in study.trials() if trial["state"] == "lost"], "who lives in another container is let be"
    pod.kill()
    pod.communicate()
    _, err = joined.communicate(timeout=180)
    assert joined.returncode == 0, err
    trials = study.trials()
    assert len([trial for trial in trials if trial["state"] == "lost"]) == 1
    assert len([trial for trial in trials if trial["state"] in ("complete", "pruned")]) == 3
    assert list((home / ".batchcal" / "moved.journal.workers").iterdir()) == []


@pytest.mark.slow
def test_two_commands_run_the_same_study_in_parallel(home: Path) -> None:
    study = Study(home, "joined", trials=8, epochs=10)
    commands = [study.started(), study.started()]
    for command in commands:
        _, err = command.communicate(timeout=180)
        assert command.returncode == 0, err
    states = [trial["state"] for trial in study.trials()]
    assert len(states) == 8
    assert set(states) <= {"complete", "pruned"}


@pytest.mark.slow
@pytest.mark.parametrize(("presses", "code"), [(1, 0), (2, 6)])
def test_q_stops_after_the_running_trial_and_a_second_q_stops_at_once(home: Path, presses: int, code: int) -> None:
    study = Study(home, f"pressed-{presses}", trials=30, epochs=30, arguments="samples = 1000")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.environ.update(TERM="xterm", CI="", COLUMNS="100")
        os.execv(sys.executable, study.command("hpo run"))
    study.wait_until("complete")
    os.write(terminal, b"q" * presses)
    shown = b""
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == code, shown
    told = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    assert "the same command continues the study" in told
    if presses == 2:
        assert "q was pressed twice" in told
        assert "try: batchcal hpo run" in told
        return
    assert "no new trial will start" in told
    states = {str(trial["state"]) for trial in study.trials()}
    assert "running" not in states
    assert "stopped" not in states
    assert len(study.trials()) < 30


@pytest.mark.slow
def test_a_study_with_a_changed_space_is_rejected_and_not_modified(home: Path) -> None:
    study = Study(home, "other", trials=2, epochs=2)
    assert study("hpo run").returncode == 0
    before = study.seen()
    refused = Study(home, "other", trials=4, epochs=2, space=SPACE.replace("0.3", "0.5"))("hpo run")
    assert refused.returncode == 2
    assert "study 'other' exists with other settings" in refused.stderr
    assert "space.learning_rate" in refused.stderr
    assert "--set study=" in refused.stderr
    assert Study(home, "other", trials=2, epochs=2).seen() == before
    more = Study(home, "other", trials=4, epochs=2)("hpo run")
    assert more.returncode == 0, "more trials are the same study"
    assert study.seen()["done"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"more": 'storage = "sqlite:////nowhere/at/all.db"'}, 2, "cannot be used"),
        ({"more": 'storage = "no-such-database://x"'}, 2, "cannot be used"),
        ({"space": 'colour = { kind = "categorical", choices = ["red"] }'}, 2, "colour"),
        ({"space": 'width = { kind = "categorical", choices = [30_000_000_000] }'}, 4, "none of 5 trials fits"),
        ({"arguments": 'fault = "raise"'}, 5, "a width that this model does not like"),
        ({"more": 'budget = "10"', "space": 'width = { kind = "int", low = 64, high = 65 }'}, 4, "the study allows 10"),
        ({"space": 'learning_rate = { kind = "uniform", low = 1.0, high = 0.1 }'}, 2, "is above high"),
    ],
    ids=["folder", "database", "argument", "too-large", "raises", "budget", "bounds"],
)
def test_a_study_that_cannot_run_exits_with_an_error_and_its_code(
    home: Path, settings: dict[str, str], code: int, said: str, request: pytest.FixtureRequest
) -> None:
    arguments, space, more = settings.get("arguments", ""), settings.get("space", SPACE), settings.get("more", "")
    study = Study(home, f"bad-{request.node.callspec.id}", arguments=arguments, space=space, more=more)
    result = study("hpo run")
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert "batchcal/hpo" not in result.stderr, "no traceback of ours"
    assert ("Traceback" in result.stderr) == (code == 5), "that of the user's code"
    assert result.stdout == ""
    assert "  try: " in result.stderr


@pytest.mark.slow
def test_write_configs_writes_a_config_for_each_study_of_a_matrix(home: Path) -> None:
    study = Study(home, "family", trials=2, epochs=2)
    result = study(
        "hpo run", "--matrix", "budget=2M,2B", "--matrix", "samples=200,300", "--set", "trials=3", "--write-configs", "family"
    )
    assert result.returncode == 0, result.stderr
    written = [Path(line) for line in result.stdout.splitlines()]
    assert [path.name for path in written] == [
        f"family-budget={budget}-samples={samples}.toml" for budget in ("2M", "2B") for samples in (200, 300)
    ]
    member = [sys.executable, "-m", "batchcal", "hpo", "run", str(written[0])]
    finished = subprocess.run(member, cwd=home, capture_output=True, text=True, check=False, timeout=180)
    assert finished.returncode == 0, finished.stderr
    assert "3 of 3" in finished.stdout
