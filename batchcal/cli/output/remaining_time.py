"""Progress of a training and its remaining time, from its own events."""

from __future__ import annotations

from batchcal.values.training_events import EpochEnded, StepEnded, TrainingStarted


class Pace:
    """Progress in epochs. Evaluation and checkpoints are assumed to take the same share of the time as so far."""

    def __init__(self) -> None:
        self.epochs = 0
        self._train_samples = self._steps_per_epoch = 0
        self._start_s = self._start_position = 0.0
        self._position: float | None = None
        """Epochs done, including the share of the current epoch. None: the length of an epoch is unknown."""

    def started(self, event: TrainingStarted, *, now_s: float) -> None:
        self.epochs = event.epochs or 0
        self._train_samples, self._steps_per_epoch = event.train_samples or 0, event.steps_per_epoch or 0
        self._start_s = now_s
        self._position = self._share(event.epoch, samples=event.resumed_at_sample, steps=0)
        self._start_position = self._position or 0.0

    def stepped(self, event: StepEnded) -> None:
        self._position = self._share(event.epoch, samples=event.samples_seen, steps=event.step)

    def epoch_ended(self, event: EpochEnded) -> None:
        # The length of the first epoch of a stream is the estimate for the others.
        self._steps_per_epoch = self._steps_per_epoch or event.steps
        self._position = event.epoch + 1.0

    @property
    def share(self) -> float | None:
        """Completed share of the training, 0 to 1."""
        return None if self._position is None or not self.epochs else min(self._position / self.epochs, 1.0)

    def left_s(self, *, now_s: float) -> float | None:
        """Return the seconds until the end at the pace so far. None: not known yet."""
        if self._position is None or not self.epochs or self._position <= self._start_position:
            return None
        return max(self.epochs - self._position, 0.0) * (now_s - self._start_s) / (self._position - self._start_position)

    def _share(self, epoch: int, *, samples: int, steps: int) -> float | None:
        if self._train_samples:
            return epoch + min(samples / self._train_samples, 1.0)
        if self._steps_per_epoch:
            return epoch + min(steps / self._steps_per_epoch, 1.0)
        return None
