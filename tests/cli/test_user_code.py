"""The user's module changes the process when it is imported: the training, its files and its result are not affected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import TASK, Calibrated

pytestmark = pytest.mark.child

TRAIN = ("train", "--no-calibrate", "--json", "--checkpoint", "kept/best.pt", "--log", "kept/log.jsonl", "--epochs", "1")

PLACE = """\
import argparse, logging, sys
os.makedirs('elsewhere', exist_ok=True)
os.chdir('elsewhere')
parser = argparse.ArgumentParser()
parser.add_argument('--lr', default=1)
parser.parse_args()
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
logging.info('loading')
os.write(1, b'loading\\n')
print('x' * 1_000_000)
def main(): raise SystemExit('ran as a script')
if __name__ == '__main__': main()
"""
PROCESS = """\
import atexit, io, signal, subprocess, sys
torch.set_num_threads(1)
torch.set_num_interop_threads(1)
torch.set_default_device('cpu')
for number in (2, 15): signal.signal(number, lambda *_: print('mine'))
torch.multiprocessing.set_start_method('spawn')
atexit.register(subprocess.Popen(['sleep', '20']).kill)
os.environ['TMPDIR'] = os.environ['HOME'] = '/nowhere'
sys.stdout = io.StringIO()
sys.stderr = open(os.devnull, 'w')
"""
TEE = """
import sys
class Tee:
    def write(self, text):
        sys.__stdout__.write(text)
sys.stdout = sys.stderr = Tee()
"""
CLOSED = """\
import sys, warnings
warnings.simplefilter('error')
sys.stdout.close()
sys.stderr.close()
"""
QUICK = (
    *("--json", "--memory-limit", "2GiB", "--max-batch", "8"),
    *("--allocator", "default", "--objective", "memory", "--workers", "0"),
)


def batchcal(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchcal", *arguments], env=os.environ, capture_output=True, text=True, check=False, timeout=120
    )


def with_lines(project: Path, lines: str) -> None:
    (project / "task.py").write_text(TASK.replace("import torch\n", f"import os\nimport torch\n{lines}"))


@pytest.mark.slow
@pytest.mark.parametrize("lines", [PLACE, PROCESS, CLOSED, TEE], ids=["place", "process", "closed-streams", "tee"])
def test_a_training_works_when_user_code_changes_the_process(lines: str, calibrated: Calibrated, project: Path) -> None:
    with_lines(project, lines)
    calibrated()
    (project / "kept").mkdir()
    done = batchcal(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "training"
    assert {"best.pt", "log.jsonl"} <= {path.name for path in (project / "kept").iterdir()}
    assert "loading" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("lines", [PLACE, PROCESS, CLOSED], ids=["place", "process", "closed-streams"])
def test_a_calibration_works_when_user_code_changes_the_process(lines: str, project: Path) -> None:
    with_lines(project, "print('reading the data')\n" + lines)
    done = batchcal("calibrate", "-v", *QUICK)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "calibration-view"
    assert "\n  | " in done.stderr


@pytest.mark.slow
def test_output_of_a_calibration_is_not_shown_without_v(project: Path) -> None:
    with_lines(project, "print('reading the data')\n")
    done = batchcal("calibrate", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "reading the data" not in done.stdout + done.stderr


@pytest.mark.slow
def test_import_output_is_shown_with_v_on_stderr_and_truncated(calibrated: Calibrated, project: Path) -> None:
    with_lines(project, "for number in range(100_000): print('line', number)\n")
    calibrated()
    done = batchcal("train", "--no-calibrate", "--json", "--epochs", "1", "-v")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert "line 100\n" in done.stderr
    assert "further output is not shown" in done.stderr
    assert "line 99999" not in done.stderr


def test_output_of_an_import_that_fails_is_shown_with_the_error(calibrated: Calibrated, project: Path) -> None:
    with_lines(project, "print('reading the data')\n1 / 0\n")
    calibrated()
    done = batchcal("train", "--no-calibrate")
    assert done.returncode == 5
    assert done.stdout == ""
    error = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert error[0] == "error: importing task.py raised ZeroDivisionError: division by zero"
    assert 'task.py", line' in error[2]
    assert "         reading the data" in error


@pytest.mark.parametrize("verb", [("train", "--no-calibrate"), ("calibrate", "--memory-limit", "2GiB", "--time-limit", "40s")])
def test_a_missing_required_argument_exits_with_code_5_and_a_hint(
    verb: tuple[str, ...], calibrated: Calibrated, project: Path
) -> None:
    with_lines(
        project, "import argparse\np = argparse.ArgumentParser()\np.add_argument('--data', required=True)\np.parse_args()\n"
    )
    calibrated()
    done = batchcal(*verb, *(("--force",) if verb[0] == "calibrate" else ()), "-v")
    assert done.returncode == 5, done.stderr
    assert "argparse: the following arguments are required: --data" in done.stderr
    assert "sys.argv is ['task.py'], without arguments" in done.stderr
    assert "[task.args]" in done.stderr
    assert "usage: task.py" in done.stderr
    assert "batchcal/cli" not in done.stderr  # no frames of batchcal's own


@pytest.mark.slow
def test_a_copied_task_uses_the_calibration_with_a_notice(
    calibrated: Calibrated, project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated()
    copy = tmp_path_factory.mktemp("copy")
    (copy / "task.py").write_text("# a copy\n" + TASK)
    monkeypatch.setenv("BATCHCAL_CALIBRATION", str(project / ".batchcal" / "calibration.json"))
    monkeypatch.chdir(copy)
    done = batchcal("train", "task.py:task", "--no-calibrate", "--effective-batch", "96", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert f"calibrated in another folder, {project}" in done.stderr


@pytest.mark.parametrize("verb", ["calibrate", "train"])
def test_a_task_file_with_a_syntax_error_exits_with_code_5(verb: str, project: Path) -> None:
    with_lines(project, "def (:\n")
    done = batchcal(verb)
    assert done.returncode == 5
    assert done.stderr.splitlines()[0] == "error: task.py is not valid Python: invalid syntax"
    assert 'File "task.py", line 3' in done.stderr
