"""A study as a command in a folder of its own, and what its trials tell."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from batchcal.hpo.search.space import BATCH_SIZE
from batchcal.hpo.study_status import State
from tests.benchmarks._limits import ROOT

TINY = """\
[task]
spec = "tasks.py:task"
[task.args]
samples = {samples}
[calibrate]
allocator = "default"
time_limit = "5s"
workers = 0
max_batch = 100
[train]
epochs = {epochs}
patience = 10
min_delta = 0.0001
[hpo]
study = "study"
trials = {trials}
metric = "mse"
{more}
[hpo.space]
learning_rate = {{ kind = "log_uniform", low = 0.003, high = 0.3 }}
width = {{ kind = "categorical", choices = [4, 16] }}
batch_size = {{ kind = "categorical", choices = [16, 60, 100] }}
"""
"""A line learned by a small net: what is measured is the study, not the training."""
TRAINED_SAMPLES = 0.8
"""Of `samples`; the others are held out."""


@contextmanager
def folder_of(config: str) -> Iterator[Path]:
    """A user's folder with `study.toml` and the tiny task."""
    with tempfile.TemporaryDirectory(prefix="study-") as name:
        folder = Path(name)
        shutil.copy(ROOT / "tests" / "hpo" / "tasks.py", folder)
        (folder / "study.toml").write_text(config, encoding="utf-8")
        yield folder


def tiny(*, trials: int, epochs: int, samples: int = 400, more: str = "") -> str:
    """A config."""
    return TINY.format(trials=trials, epochs=epochs, samples=samples, more=more)


def command(*arguments: str) -> list[str]:
    """`batchcal hpo VERB study.toml ...`."""
    verb, *rest = arguments
    return [sys.executable, "-m", "batchcal", "hpo", verb, "study.toml", *rest]


def told(text: str) -> dict[str, object]:
    """What `--json` printed."""
    document: dict[str, object] = json.loads(text)
    return document


def trials_of(document: Mapping[str, object]) -> list[Mapping[str, object]]:
    trials = document["trials"]
    assert isinstance(trials, list)
    return trials


def facts_of(trial: Mapping[str, object]) -> Mapping[str, object]:
    facts = trial["facts"]
    assert isinstance(facts, dict)
    return facts


def in_state(trials: Sequence[Mapping[str, object]], *states: State) -> list[Mapping[str, object]]:
    return [one for one in trials if one["state"] in states]


def wrong_steps(trials: Sequence[Mapping[str, object]], samples: int) -> list[object]:
    """Numbers of the complete trials that made an optimizer step of other than the sampled batch size, but for the end of an
    epoch, which is what is left of `samples`."""
    wrong: list[object] = []
    for trial in in_state(trials, "complete"):
        parameters, steps = trial["parameters"], facts_of(trial)["steps"]
        assert isinstance(parameters, dict)
        assert isinstance(steps, dict)
        batch = int(parameters[BATCH_SIZE])
        allowed = {str(batch), str(samples % batch)} if batch <= samples else {str(samples)}
        if not set(steps) <= allowed:
            wrong.append(trial["number"])
    return wrong
