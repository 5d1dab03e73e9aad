"""What only reads, detects or plans loads no torch: one law over the library and the verbs, in two interpreters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.cli.conftest import Calibrated
from tests.support.runs import write_run

TORCH: Final = frozenset({"torch", "numpy", "optuna", "sqlalchemy", "tensorboard", "tomli_w"})
"""Slow to import, or of an extra that may not be installed."""
TERMINAL: Final = frozenset({"typer", "rich"})
PROCESSES: Final = frozenset({"multiprocessing", "asyncio", "filelock"})


class Step(NamedTuple):
    """Code that runs after the steps before it, in the same interpreter."""

    code: str
    forbidden: frozenset[str]
    """Packages that no step up to this one may have imported."""


def verb(command: str, *also: str) -> Step:
    return Step(f"assert main({command.split()!r}) == 0", TORCH.union(also))


LIBRARY: Final = (
    Step("import batchcal", TORCH | TERMINAL | PROCESSES | {"pydantic"}),
    Step("import batchcal.train; batchcal.Task, batchcal.Plan, batchcal.Calibration", TORCH | TERMINAL | PROCESSES),
    Step("from batchcal.train.report.run import *; from batchcal.train.report.read import *", TORCH | TERMINAL | PROCESSES),
    Step("from batchcal.train.report.monitor import *", TORCH | TERMINAL | PROCESSES),
    Step("assert batchcal.load().kind == 'calibration'", TORCH | TERMINAL | PROCESSES),
    Step("assert sum(batchcal.load_plan(effective_batch=50).micro_batches) == 50", TORCH | TERMINAL),
    Step("batchcal.detect()", TORCH | TERMINAL),
    Step("from batchcal.detect.torch_answer import query_torch_in_child; query_torch_in_child()", TORCH | TERMINAL),
)
VERBS: Final = (
    Step("from batchcal.__main__ import main", TORCH),
    verb("--help", "pydantic", "psutil", "multiprocessing"),
    verb("--version"),
    *map(verb, ("show", "show --why", "show --html x.html", "show --check", "plan --effective-batch 50")),
    *map(verb, ("plan --effective-batch 50 --format sh", "calibrate --allocator default")),
    *map(verb, ("show run.jsonl", "show run.jsonl --html run.html")),
    Step("started = []; os.execvpe = lambda *command: started.append(command)", TORCH),
    Step("main(['exec', '--effective-batch', '50', '-q', '--', 'true']); assert started", TORCH),
)
PROGRAM: Final = """
import json, os, sys
before = set(sys.modules)  # coverage imports some
import contextlib, io
for number, (code, forbidden) in enumerate(json.loads(sys.argv[1])):
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, globals())
    if loaded := sorted(set(forbidden) & (set(sys.modules) - before)):
        sys.exit(f"{code}: {loaded}")
"""


@pytest.mark.smoke
@pytest.mark.child
@pytest.mark.parametrize("steps", [LIBRARY, VERBS], ids=["library", "verbs"])
def test_reading_and_planning_do_not_import_torch(steps: tuple[Step, ...], calibrated: Calibrated, project: Path) -> None:
    calibrated()
    write_run(project / "run.jsonl")
    listed = json.dumps([(step.code, sorted(step.forbidden)) for step in steps])
    done = subprocess.run([sys.executable, "-c", PROGRAM, listed], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
