"""Code of a measuring child: one step at each of many sizes. The parent refers to it by name and does not call it."""

from __future__ import annotations

import time

from batchcal.guard.channel.wire import JSON
from batchcal.guard.children.memory_errors import memory_error
from batchcal.guard.children.report import describe
from batchcal.guard.job import ChildContext
from batchcal.measure.children.scout_job import ScoutArguments
from batchcal.measure.inside.subject import Subject
from batchcal.workload.data.worst_case import WorstCase

SCAN_LIMIT_S = 0.2


def scout(request: ScoutArguments, context: ChildContext) -> JSON:
    """Report each size at which a step ran. A failed step may leave the task in any state, so sizes that ran are tried again."""
    context.phase("load")
    subject = Subject.load(request.setting)
    context.phase("read")
    worst = WorstCase.of(subject.task, "train", limit_s=SCAN_LIMIT_S, seed=request.setting.seed)
    context.phase("measure")
    until = time.monotonic() + request.limit_s
    largest: int | None = None
    """The smallest size that ran out of memory."""
    for size in request.sizes:
        if time.monotonic() >= until:
            break
        if size > (worst.samples or size) or (largest is not None and size >= largest):
            continue
        try:
            subject.train(worst.batch(size), size)
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            if memory_error(describe(error, "measure")) is not None:
                largest = size
            subject.task.optimizer.zero_grad(set_to_none=True)
        else:
            context.send({"ran": size})
    return {"done": True}
