"""Code of a measuring child: trains with batches of changing shapes. The parent refers to it by name and does not call it."""

from __future__ import annotations

import random
import time
from itertools import count
from typing import Final

from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.machine.peak_meter import HostPeak
from batchcal.measure.heap.growth import SETTLED
from batchcal.measure.heap.trial import HeapReading
from batchcal.measure.heap.varied_job import HeapArguments
from batchcal.measure.inside.subject import Subject, warm_up_for
from batchcal.workload.data.worst_case import WorstCase

SCAN_LIMIT_S: Final = 0.5
"""Limit of the scan, seconds. It is used only if the examination found no order of the samples."""
MOST_STEPS: Final = 256
"""No time for more: 256 take 2 to 8 s. Up to 1,024 steps, peaks of texts in convolutions grew by another 19 to 53 %."""


def train_varied(arguments: HeapArguments, context: ChildContext) -> JSON:
    """Run steps of the largest batch first, then of random batches. Run the largest batch again each time that the number of
    steps has doubled. The peak is read there and reported at once, because memory may end the child."""
    setting, request = arguments.setting, arguments.request
    context.phase("load")
    subject = Subject.load(setting)
    context.phase("read")
    worst = WorstCase.of(subject.task, "train", limit_s=SCAN_LIMIT_S, seed=setting.seed, order=arguments.order)
    host = HostPeak()
    warm_up_for(subject, worst, setting, context, request.batch)
    generator = random.Random(setting.seed)
    host.reset()
    until = time.monotonic() + request.limit_s
    for step in count(1):
        last = step >= MOST_STEPS or time.monotonic() >= until
        doubled = step & (step - 1) == 0
        # The batch stays alive while the next one is collated, as in every training loop.
        batch = worst.batch(request.batch) if step <= SETTLED or doubled or last else worst.random_batch(request.batch, generator)
        subject.train(batch, request.batch)
        if step >= SETTLED and (doubled or last):
            context.send({"reading": HeapReading(steps=step, peak_bytes=host.read()).model_dump(mode="json")})
        if last:
            break
    context.phase("finish")
    return {"done": True}
