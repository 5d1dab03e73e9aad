"""Schedule of a training's checkpoints, and handling of failed saves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from batchcal.core.clock import Clock
from batchcal.core.errors import NotSaved
from batchcal.core.progress import Notice, Progress
from batchcal.train.checkpoints.checkpoint import Standing
from batchcal.values.training_events import CheckpointSaved, TrainingEvent

RETRY_S: Final = 10.0
"""Wait before a failed save is retried, once, within an epoch. Many causes are temporary: a full quota, a lost network disk."""
LAST_RETRY_S: Final = 0.5
"""Wait before the only retry of a training's last save."""


class CheckpointWriter:
    """Writes the checkpoints of one training. A save that fails does not end it.

    Args:
        path: None: checkpoints are off.
        write: writes the checkpoint. If it raises `NotSaved`, the earlier checkpoint is unchanged.
        every_s: seconds between two checkpoints within an epoch.
    """

    def __init__(
        self,
        path: Path | None,
        write: Callable[[Path, Standing], None],
        *,
        every_s: float,
        clock: Clock,
        progress: Progress[TrainingEvent],
    ) -> None:
        self.path = path
        self.problem: str | None = None
        """Reason why the latest save failed. None: it did not fail."""
        self.saved: Standing | None = None
        """Content of the file. None: no state of this run."""
        self._write, self._every_s, self._clock, self._progress = write, every_s, clock, progress
        self._attempted_at = clock.monotonic()
        self._retried = False

    def save_when_due(self, standing: Standing) -> None:
        """Save within an epoch: after `every_s`, and soon after a failed save."""
        since = self._clock.monotonic() - self._attempted_at
        if since >= self._every_s or (self.problem is not None and not self._retried and since >= RETRY_S):
            self._retried = self.problem is not None and since < self._every_s
            self.save(standing)

    def save(self, standing: Standing, *, last: bool = False) -> None:
        """Save now.

        Args:
            last: the training ends here, so that a failed save is retried at once.
        """
        if self.path is None or (self.saved is standing and self.problem is None):
            return
        if not self._attempt(self.path, standing) and last:
            time.sleep(LAST_RETRY_S)
            self._attempt(self.path, standing)

    def outcome(self) -> str:
        """Return where the training is saved, as a sentence for an error."""
        if self.path is None:
            return "checkpoints are off: this training is not saved"
        if self.problem is None:
            return (
                f"the checkpoint is {self.path}" if self.saved is not None else "the training ended before its first checkpoint"
            )
        return self.problem if self.saved is None else f"{self.problem}; {self._previous(self.saved)}"

    def earlier(self) -> str:
        """Return where the latest checkpoint is. It does not contain the current state."""
        return "there is no checkpoint of this run" if self.saved is None else self._previous(self.saved)

    def _attempt(self, path: Path, standing: Standing) -> bool:
        try:
            self._write(path, standing)
        except NotSaved as error:
            self.problem = f"{error.what}: {error.known}"
            self._progress.event(Notice(self.problem))
        else:
            self.problem, self.saved = None, standing
            self._progress.event(CheckpointSaved(path=str(path), epoch=standing.epoch, samples_seen=standing.samples))
        if self.problem is None:
            self._retried = False
        self._attempted_at = self._clock.monotonic()
        return self.problem is None

    def _previous(self, saved: Standing) -> str:
        return f"{self.path} contains the training up to epoch {saved.epoch}, step {saved.group}"
