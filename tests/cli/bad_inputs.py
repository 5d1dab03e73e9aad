"""What people type wrong, as commands with the files around them, and what batchcal then prints.

`python -m tests.cli.bad_inputs` writes the golden file; `test_bad_inputs.py` compares with it. Read each text as a stranger: it
has to state what happened, what is known, and what to type next.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from batchcal.__main__ import main
from batchcal.calibration.fingerprint import fingerprint_of
from batchcal.calibration.schema import TIME_TO_LIVE
from batchcal.calibration.store import save
from batchcal.core.clock import SystemClock
from batchcal.detect.detect import detect
from batchcal.workload.spec.identity import identify
from batchcal.workload.spec.reference import TaskReference
from tests.support.calibrations import a_calibration, options

GOLDEN: Final = Path(__file__).parent / "golden" / "bad_inputs.txt"
HEAD: Final = """\
Commands that cannot work, with exit code and complete stderr. Written by: python -m tests.cli.bad_inputs
"""
TASK: Final = """\
import torch
import batchcal


def task(width=8):
    data = [(torch.randn(8), torch.randn(1)) for _ in range(96)]
    model = torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.Linear(width, 1))
    return batchcal.Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        train_data=data,
        loss=lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1]),
    )


not_a_function = 3
"""
STUDY: Final = """\
[task]
spec = "task.py:task"
[hpo]
study = "first"
trials = 2
[hpo.space]
width = { kind = "categorical", choices = [4, 8] }
batch_size = { kind = "categorical", choices = [8, 16] }
"""


@dataclass(frozen=True)
class Case:
    command: str
    files: Mapping[str, str] = field(default_factory=dict)
    """Besides task.py. A name that ends in / is a folder."""
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[Path], None] = lambda folder: None
    """What else is prepared."""
    child: bool = False
    """It starts processes with torch."""


def calibrated(**overrides: object) -> Callable[[Path], None]:
    """A calibration of task.py as this machine would have made it an hour ago; overrides replace fields."""

    def write(folder: Path) -> None:
        here, now = detect(), SystemClock().now() - timedelta(hours=1)
        identity = identify(TaskReference(spec="task.py:task", directory=str(folder)))
        wanted = options(**({"samples": 32} if here.memory.limit.value >= 4 << 30 else {}))
        values: dict[str, object] = {
            "environment": here,
            "task": identity,
            "options": wanted,
            "fingerprint": fingerprint_of(here, identity, wanted, environ=os.environ),
            "created_at": now,
            "expires_at": now + TIME_TO_LIVE,
        }
        save(a_calibration(**(values | overrides)), folder / ".batchcal" / "calibration.json")

    return write


def expired(folder: Path) -> None:
    long_ago = SystemClock().now() - timedelta(days=30)
    calibrated(created_at=long_ago, expires_at=long_ago + TIME_TO_LIVE)(folder)


def changed_since(folder: Path) -> None:
    calibrated()(folder)
    (folder / "task.py").write_text(TASK.replace("0.05", "0.5"))


def forged(folder: Path) -> None:
    calibrated()(folder)
    path = folder / ".batchcal" / "calibration.json"
    path.write_text(path.read_text().replace('"batch": 512', '"batch": 4096'))


def truncated(folder: Path) -> None:
    (folder / ".batchcal").mkdir()
    (folder / ".batchcal" / "calibration.json").write_text('{"kind": "calibration", "format": 1, "alloc')


def of_the_future(folder: Path) -> None:
    calibrated(format=99)(folder)


def linked(folder: Path) -> None:
    calibrated()(folder)
    path = folder / ".batchcal" / "calibration.json"
    path.rename(folder / "elsewhere.json")
    path.symlink_to(folder / "elsewhere.json")


def verified_nothing(folder: Path) -> None:
    calibrated(status="partial", findings=())(folder)


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def python(returned: str, before: str = "") -> str:
    return f"import torch\nimport batchcal\n\n\ndef task():\n    {before or 'pass'}\n    return {returned}\n"


def a_task(**changes: str) -> str:
    fields = {
        "model": "model",
        "optimizer": "torch.optim.SGD(model.parameters(), lr=0.1)",
        "train_data": "[torch.randn(4) for _ in range(64)]",
        "loss": "lambda model, batch: model(batch).square().mean()",
        **changes,
    }
    return python(
        "batchcal.Task(" + ", ".join(f"{name}={value}" for name, value in fields.items()) + ")", "model = torch.nn.Linear(4, 1)"
    )


def toml(text: str) -> dict[str, str]:
    return {"x.toml": f'[task]\nspec = "task.py:task"\n{text}\n'}


SPEC: Final = "task.py:task"
CASES: Final = (
    # Verbs and flags
    Case("calibrat task.py:task"),
    Case("calibrate task.py:task --memory-limits 2GiB"),
    Case("calibrate task.py:task --memory-limit 2g"),
    Case("calibrate task.py:task --memory-limit 2000"),
    Case("calibrate task.py:task --memory-limit lots"),
    Case("calibrate task.py:task --memory-limit 0GiB"),
    Case("calibrate task.py:task --margin 150%"),
    Case("calibrate task.py:task --time-limit soon"),
    Case("calibrate task.py:task --time-limit -5s"),
    Case("calibrate task.py:task --max-batch 0"),
    Case("calibrate task.py:task --max-batch 8 --multiple-of 32"),
    Case("calibrate task.py:task --workers 5000"),
    Case("calibrate task.py:task --workers two"),
    Case("calibrate task.py:task --allocator tcmaloc"),
    Case("calibrate task.py:task --allocator /lib/absent.so"),
    Case("calibrate task.py:task --device cdua"),
    Case("calibrate task.py:task --device cuda:7"),
    Case("calibrate task.py:task --objective speed"),
    Case("calibrate task.py:task --objective throughputs"),
    Case("calibrate task.py:task --effective-batch 1e3"),
    Case("calibrate task.py:task --shape width"),
    Case("calibrate task.py:task --pipeline-only --dry-run"),
    Case("calibrate task.py:task other.py:task"),
    Case("plan --format yml"),
    Case("plan --json --format sh"),
    Case("plan --world-size 0"),
    Case("exec --on-stale ignore -- true"),
    Case("exec --"),
    Case("exec -- pyhton train.py"),
    Case("train task.py:task --epochs none"),
    Case("train task.py:task --resume --no-checkpoint"),
    Case("train task.py:task --patience 0"),
    # Variables
    Case("calibrate task.py:task", environment={"BATCHCAL_MARGIN": "a lot"}),
    Case("calibrate task.py:task --margin 200%", environment={"BATCHCAL_MARGN": "10%"}),
    Case("train task.py:task --allocator default", environment={"BATCHCAL_EFFECTIVE_BATCH": "0"}),
    Case("calibrate task.py:task", environment={"BATCHCAL_CALIBRATION": "task.py"}),
    Case("plan", environment={"BATCHCAL_KEY_FILE": "absent.key"}),
    # Configs
    Case("calibrate absent.toml", files={"present.toml": ""}),
    Case("calibrate x.toml", files={"x.toml": "[task\nspec = 1"}),
    Case("calibrate x.toml", files={"x.toml": "[task]\n"}),
    Case("calibrate x.toml", files=toml('[calibrate]\nmemory_limt = "2GiB"')),
    Case("calibrate x.toml", files=toml('[calibrate]\nmemory_limit = "2g"')),
    Case("calibrate x.toml", files=toml("[calibrate]\nworkers = 5000")),
    Case("calibrate x.toml", files=toml("[calibrate]\nmax_batch = 8\nmultiple_of = 32")),
    Case("calibrate x.toml", files=toml('[calibrate]\nallocator = "jemaloc"')),
    Case("calibrate x.toml", files=toml("[calibrate]\ntime_limit = [60]")),
    Case("calibrate x.toml", files=toml('[plan]\nobjective = "memroy"')),
    Case("calibrate x.toml", files=toml("[train]\neffective_batch = 64")),
    Case("calibrate x.toml", files=toml("[tran]\nepochs = 3")),
    Case("train x.toml", files=toml('[train]\nschedule = "cosin"\n[plan]\neffective_batch = 64')),
    Case("train x.toml", files=toml("[train]\ndrop_last = 3\n[plan]\neffective_batch = 64")),
    Case("train x.toml", files=toml('[train]\nbatching = "buckets"\n[plan]\neffective_batch = 64')),
    Case(
        "calibrate",
        files={"pyproject.toml": '[tool.batchcal.task]\nspec = "task.py:task"\n[tool.batchcal.calibrate]\nmargin = 3\n'},
    ),
    # SPECs
    Case("calibrate", files={".git/": ""}),
    Case("calibrate task.py"),
    Case("calibrate taks.py:task"),
    Case("calibrate task.py:"),
    Case("calibrate no_such_package.module:task", child=True),
    Case("calibrate task.py:tsk", child=True),
    Case("calibrate task.py:not_a_function", child=True),
    Case("calibrate x.toml", files=toml("[task.args]\nwdith = 16"), child=True),
    # Tasks and the user's code
    Case("calibrate mine.py:task", files={"mine.py": python("42")}, child=True),
    Case("calibrate mine.py:task", files={"mine.py": a_task(effective_batch="'64'")}, child=True),
    Case("calibrate mine.py:task", files={"mine.py": a_task(loss="None")}, child=True),
    Case("calibrate mine.py:task", files={"mine.py": a_task(optimizer="torch.optim.SGD([torch.ones(1)])")}, child=True),
    Case("calibrate mine.py:task", files={"mine.py": a_task(loss="lambda model, batch: model(batch).missing")}, child=True),
    Case("calibrate mine.py:task", files={"mine.py": "import absent_library\n"}, child=True),
    Case("calibrate mine.py:task", files={"mine.py": "def task(:\n"}, child=True),
    Case("train mine.py:task --time-limit 10s", files={"mine.py": a_task()}, child=True),
    # Outputs
    Case("calibrate task.py:task --output task.py"),
    Case("calibrate task.py:task --output results/", files={"results/": ""}),
    Case("calibrate task.py:task --output task.py/c.json"),
    Case("calibrate task.py:task --output /proc/c.json"),
    Case("calibrate task.py:task --output pipe", before=a_pipe),
    Case("calibrate task.py:task --output a.json", files={"a.journal.jsonl": "my notes\n"}),
    Case("calibrate task.py:task --pipeline-only --output task.py"),
    Case("calibrate task.py:task --pipeline-only", environment={"BATCHCAL_CALIBRATION": "task.py"}),
    Case("train task.py:task --effective-batch 8 --log task.py"),
    Case("train x.toml --effective-batch 8", files=toml('[train]\nlog = "task.py"')),
    Case("train task.py:task --effective-batch 8 --checkpoint task.py"),
    Case("show --html task.py", before=calibrated()),
    Case("show --html .batchcal/calibration.json", before=calibrated()),
    Case("hpo run study.toml --write-configs .", files={"study.toml": STUDY, "first.toml": "x = 1\n"}),
    # Calibrations
    Case("show"),
    Case("show absent.json"),
    Case("show task.py"),
    Case("plan"),
    Case("plan --json", before=calibrated()),
    Case("plan --format sh", before=calibrated(effective_batch=128)),
    Case("train task.py:task --allocator default --no-calibrate", before=calibrated()),
    Case("exec -- true", before=calibrated()),
    Case("plan --effective-batch 8", before=expired),
    Case("plan --effective-batch 8", before=changed_since),
    Case("plan --effective-batch 8", before=forged),
    Case("plan --effective-batch 8", before=truncated),
    Case("plan --effective-batch 8", before=of_the_future),
    Case("plan --effective-batch 8", before=linked),
    Case("plan --effective-batch 8", before=verified_nothing),
    Case("plan --effective-batch 8 --require-signature", before=calibrated()),
    Case("plan --effective-batch 8 --allocator retain", before=calibrated()),
    Case("plan --effective-batch 8 --device cuda", before=calibrated()),
    Case("plan --effective-batch 7 --world-size 2", before=calibrated()),
    Case("plan --effective-batch 99999999999", before=calibrated()),
    Case("plan --what-if 2g", before=calibrated()),
    Case("plan --shapes", before=calibrated()),
    Case(
        "plan --effective-batch 7 --world-size 2 --config x.toml", files=toml("[plan]\neffective_batch = 8"), before=calibrated()
    ),
    Case("plan --world-size 3 --config x.toml", files=toml("[plan]\neffective_batch = 8"), before=calibrated()),
    Case("exec --effective-batch 8 -- true", before=expired),
    Case("train task.py:task --effective-batch 8 --no-calibrate", before=changed_since),
    # Runs and studies
    Case("show run.jsonl"),
    Case("show run.jsonl", files={"run.jsonl": "my notes\n"}),
    Case("hpo run task.py:task"),
    Case("hpo run study.toml", files={"study.toml": STUDY.replace("[hpo]", "[hpoo]").replace("[hpo.space]", "[hpoo.space]")}),
    Case("hpo run study.toml", files={"study.toml": STUDY.replace("trials = 2", "trails = 2")}),
    Case("hpo run study.toml", files={"study.toml": STUDY.replace("trials = 2", 'pruner = "hyperbnd"')}),
    Case("hpo run study.toml", files={"study.toml": STUDY.replace("trials = 2", 'direction = "minimise"')}),
    Case(
        "hpo run study.toml",
        files={"study.toml": STUDY.replace('kind = "categorical", choices = [4, 8]', 'kind = "log_unifrom"')},
    ),
    Case("hpo run study.toml", files={"study.toml": STUDY.replace("batch_size", "other_size")}),
    Case("hpo run study.toml --set trials", files={"study.toml": STUDY}),
    Case("hpo run study.toml", files={"study.toml": STUDY.replace("trials = 2", 'storage = "task.py"')}),
    Case("hpo status study.toml", files={"study.toml": STUDY}),
    Case("hpo best study.toml", files={"study.toml": STUDY}),
    # Further flags, keys and arguments
    Case("calibrate task.py:task --headroom 200%"),
    Case("calibrate task.py:task --shape width=8,width=16"),
    Case("calibrate task.py:task --multiple-of 0"),
    Case("calibrate task.py:task --max-probes 0"),
    Case("plan --what-if 0GiB", before=calibrated()),
    Case("train task.py:task --max-steps 0 --effective-batch 8"),
    Case("train task.py:task --on-oom retry --effective-batch 8"),
    Case("calibrate x.toml", files=toml("[calibrate]\ntime_limit = [60, 120]")),
    Case("calibrate x.toml", files=toml("[task.args]\nwidth = [1, 2]")),
    Case("hpo run study.toml", files={"study.toml": STUDY.replace("choices = [4, 8]", "choices = []")}),
)


def run(case: Case, folder: Path) -> tuple[int, str]:
    """Exit code and stderr of `case` in the empty folder `folder`."""
    prepare(case, folder)
    error, out = io.StringIO(), io.StringIO()
    with in_folder(folder, case.environment), contextlib.redirect_stderr(error), contextlib.redirect_stdout(out):
        code = main(shlex.split(case.command))
    return code, normalised(error.getvalue(), folder)


def prepare(case: Case, folder: Path) -> None:
    (folder / "task.py").write_text(TASK)
    (folder / ".git").mkdir()
    for name, text in case.files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(text)
    with in_folder(folder, {}):
        case.before(folder)


@contextlib.contextmanager
def in_folder(folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """The working directory and the environment of a user: no settings but those of the case."""
    kept, directory = dict(os.environ), Path.cwd()
    for name in [name for name in os.environ if name.startswith("BATCHCAL_")]:
        del os.environ[name]
    os.environ.update(
        {"XDG_CONFIG_HOME": str(folder / ".home"), "XDG_CACHE_HOME": str(folder / ".cache"), "PATH": "/usr/bin:/bin"}
    )
    os.environ.update(environment)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(kept)


_REPLACED: Final = (
    (re.compile(r"^(INFO |phase |probe_|calibrate_|lap_|best |note |raced |policy_|size_|finalist_).*\n", re.MULTILINE), ""),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(\+00:00|Z| UTC)?"), "DATE"),
    (re.compile(r"\d+(\.\d+)? (GiB|MiB|KiB)\b"), "SIZE"),
    (re.compile(r"\bsha256:[0-9a-f]+|\b[0-9a-f]{12,64}\b"), "HASH"),
    (re.compile(r'File "[^"]*/(site-packages|lib/python3[^/]*)/'), 'File "…/'),
    (re.compile(r"batchcal-[0-9a-z_]{8}\b"), "batchcal-XXXXXXXX"),
    (re.compile(r'(File "[^"]*"), line \d+'), r"\1, line N"),
)


def normalised(text: str, folder: Path) -> str:
    text = text.replace(str(folder.resolve()), "PROJECT").replace(str(folder), "PROJECT")
    text = text.replace(sys.executable, "PREFIX/bin/python").replace(sys.prefix, "PREFIX").replace(tempfile.gettempdir(), "TMP")
    for pattern, instead in _REPLACED:
        text = pattern.sub(instead, text)
    return text


def section(case: Case, code: int, error: str) -> str:
    lines = [f"$ {''.join(f'{name}={value} ' for name, value in case.environment.items())}batchcal {case.command}"]
    for name, text in case.files.items():
        lines += [f"# {name}", *(f"#     {line}" for line in text.splitlines())]
    prepared = getattr(case.before, "__name__", "")
    if prepared not in ("<lambda>", "write"):
        lines.append(f"# {prepared.replace('_', ' ')}")
    return "\n".join([*lines, f"exit {code}", error.rstrip(), "", ""])


def sections(cases: tuple[Case, ...] = CASES) -> dict[int, str]:
    """The golden text of each case, by its position."""
    texts = {}
    for position, case in enumerate(CASES):
        if case in cases:
            with tempfile.TemporaryDirectory() as folder:
                texts[position] = section(case, *run(case, Path(folder)))
    return texts


if __name__ == "__main__":
    GOLDEN.write_text(HEAD + "\n" + "".join(sections().values()), encoding="utf-8")
