"""One case of `kills_everywhere`: what is run, what happens to it, and what must be true afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

import torch

from batchcal.train.checkpoints.checkpoint import Standing
from tests.support.leftovers import TOKEN, Leftovers, look, settled

Tier = Literal["fake", "real"]
KILLED: Final = -int(signal.SIGKILL)
SETTLES_S: Final = 3.0
"""For what was killed to go, on a machine that others use, too."""


@dataclass(frozen=True)
class Case:
    """What happens to which work."""

    tier: Tier
    work: str
    event: str
    number: int


@dataclass
class Verdict:
    """What was wrong. All of it empty: nothing."""

    exit: int = 0
    ended: bool = False
    """By itself, before the event."""
    left: list[str] = field(default_factory=list)
    lost: str = ""
    """Of the checkpoint, or of the calibration."""
    wrong: str = ""
    """Exit code or message."""
    wall_s: float = 0.0

    def row(self, case: Case) -> dict[str, object]:
        return asdict(case) | asdict(self)


@dataclass(frozen=True)
class Place:
    """Folders of one case."""

    project: Path
    temporary: Path
    stderr: Path
    token: str
    before: Leftovers

    @property
    def said(self) -> str:
        """What the process printed to stderr."""
        return self.stderr.read_text(encoding="utf-8", errors="replace") if self.stderr.exists() else ""

    def left(self, *, killed: bool) -> list[str]:
        """What stays beyond results. A process that was killed may leave its own files for the next one to remove."""
        left = settled(partial(self.look), self.before, seconds=SETTLES_S)
        lines = left.lines()
        partials = [str(path) for path in self.project.rglob(".*") if path.name.endswith((".partial", ".batchcal-tmp"))]
        if killed:
            lines = [line for line in lines if not line.startswith(("files: ", "semaphores: "))]
            partials = []
        return [*lines, *(f"partial: {path}" for path in partials)]

    def look(self) -> Leftovers:
        return look(token=self.token, directory=self.temporary, project=self.project)


@contextlib.contextmanager
def a_place(*, small_disk: str = "") -> Iterator[Place]:
    """New folders; with `small_disk`, such as `64k`, the project's is a file system of that size."""
    root = Path(tempfile.mkdtemp(prefix="k-", dir="/tmp"))
    project, temporary, token = root / "project", root / "t", uuid.uuid4().hex
    project.mkdir()
    temporary.mkdir()
    before = {name: os.environ.get(name) for name in (TOKEN, "TMPDIR")}
    os.environ.update({TOKEN: token, "TMPDIR": str(temporary)})
    tempfile.tempdir = str(temporary)
    if small_disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={small_disk}", "none", str(project)], check=True)
    try:
        yield Place(project, temporary, root / "stderr", token, look(token=token, directory=temporary, project=project))
    finally:
        if small_disk:
            subprocess.run(["umount", "-l", str(project)], check=False)
        tempfile.tempdir = None
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        shutil.rmtree(root, ignore_errors=True)


def position(checkpoint: Path | None) -> int:
    """Optimizer steps that a checkpoint holds. -1: it cannot be read, or there is none."""
    if checkpoint is None or not checkpoint.exists():
        return -1
    try:
        content: object = torch.load(checkpoint, weights_only=True)
        text = content.get("standing") if isinstance(content, dict) else None
        return Standing.model_validate_json(str(text)).steps
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is lost
        return -1


def fill(folder: Path) -> Path:
    """Use up the disk of `folder`."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler
