"""The last group of an epoch that a training resumes in the middle."""

from __future__ import annotations

from torch.utils.data import IterableDataset

from batchcal.core.errors import UsageError
from batchcal.core.units import count_of
from batchcal.plan.plan import Plan
from batchcal.runtime.loader import last_of_pass
from batchcal.train.checkpoints.checkpoint import Standing
from batchcal.train.options import TrainOptions
from batchcal.workload.task import Task


def refuse_last_group(task: Task, plan: Plan, options: TrainOptions, standing: Standing, earlier_batch: int) -> None:
    """Raises:
    UsageError: the task does not accept the last group of the resumed epoch. Its samples depend on the position in that epoch.
    """
    if (
        not standing.samples
        or standing.train_samples is None
        or options.drop_last
        or isinstance(task.train_data, IterableDataset)
    ):
        return
    remaining, error = last_of_pass(plan, standing.train_samples, standing.samples)
    if error:
        raise UsageError(
            f"the resumed epoch ends with a group of {count_of(remaining, 'sample')}, and the task fails with it",
            known=f"{error}; {count_of(standing.samples, 'sample')} of that epoch were trained with an effective batch of "
            f"{earlier_batch}",
            try_=f"--effective-batch {earlier_batch}, as before; or --drop-last to leave out that group",
        )
