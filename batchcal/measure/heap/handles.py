"""Free blocks that glibc's heap cannot use again while a training reads from workers.

See `batchcal.runtime.worker_handles`. batchcal's own training frees the handles with each batch; a user's training loop does not.
A few steps of a probe show only the beginning: the handles first take small free pieces of the heap, and large blocks when there
are no more small pieces. The lost blocks are counted once, with a small batch and real workers, over as many batches as torch
keeps handles of. A probe then holds memory of as many blocks of its own step.

Over 100 batches of 125, an MLP whose layers have the same width grew by 90 MiB (62 of its blocks) with two workers, and by 5 MiB
without; at 1,000 by 286 and by 35 MiB. A U-Net, a residual network, a GRU and graphs grew with two workers as they did without.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import time
import weakref
from typing import Final

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.machine.allocator import in_force, maps_large_blocks
from batchcal.machine.peak_meter import HostPeak
from batchcal.measure.heap.counting import may_be_lost
from batchcal.measure.heap.growth import NOISE, SETTLED
from batchcal.measure.heap.handles_job import HandlesAnswer, HandlesArguments
from batchcal.measure.inside.blocks import MAPPED_FROM
from batchcal.measure.inside.loader import same_batch
from batchcal.measure.inside.subject import Subject, warm_up_for
from batchcal.runtime.worker_handles import HANDLES
from batchcal.workload.data.sample_size import tensors_in
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.model.operators import OperatorWatch

SCAN_LIMIT_S: Final = 0.5
"""Limit of the scan, seconds. It is used only if the examination found no order of the samples."""
FILLERS: Final = 100_000
"""Number of records of the size of a handle. They take the small free pieces of the heap before the first step (10 MiB). Without
them, one run of a test counted 0 for an MLP that loses a block with each batch. With 20,000 records, one of 14 runs did so; with
100,000, one of 24; with a larger batch, none of 10."""
NOISE_BYTES: Final = 1 << 20
"""Bytes. Less growth is noise: the kernel counts pages of a thread in batches of up to 256 KiB, and handles take memory, too."""
PIECE_BYTES: Final = 1 << 20


def heap_keeps_blocks() -> bool:
    """Return True if this process has the allocator of an ordinary training: glibc's, not configured to keep more (policy
    `retain`, which is only used with a plan)."""
    return maps_large_blocks(in_force())


class FreedBlocks(OperatorWatch):
    """Largest block of the heap that a step needs and that is free after the step, bytes.

    Memory that stays in use, such as the gradients, is still there when the next batch arrives: its records take nothing of it.

    Args:
        batch: measure only blocks that grow with the batch: those of tensors with a dimension that is a multiple of this.
    """

    def __init__(self, batch: int = 1) -> None:
        super().__init__()
        self.largest = 0
        self._batch = batch

    def ran(self, func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], result: object) -> None:
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided and leaf.device.type == "cpu":
                storage = leaf.untyped_storage()
                grows = any(size and size % self._batch == 0 for size in leaf.shape)
                if storage.nbytes() < MAPPED_FROM and (grows or self._batch == 1):
                    weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.largest = max(self.largest, size)


def count_lost_blocks(request: HandlesArguments, context: ChildContext) -> JSON:
    """Train with one small batch until there are as many handles as torch keeps. Attribute the growth to lost blocks."""
    context.phase("load")
    subject = Subject.load(request.setting)
    context.phase("read")
    worst = WorstCase.of(subject.task, "train", limit_s=SCAN_LIMIT_S, seed=request.setting.seed, order=request.order)
    if not worst.indexable:
        return HandlesAnswer(lost_blocks=None).model_dump(mode="json")
    # Samples of middle size: many steps of the largest may take too long. The same samples each time: batches that change make
    # the heap grow by themselves.
    middle = worst.order[len(worst.order) // 2 :]
    indices = [middle[place % len(middle)] for place in range(request.batch)]
    # Workers start before this process reads a sample: files that a dataset opens on its first read are then not shared.
    batches = same_batch(worst, request.setting, indices, SETTLED + HANDLES)
    host = HostPeak()
    warm_up_for(subject, worst, request.setting, context, request.batch)
    fillers = [torch.UntypedStorage(0) for _ in range(FILLERS)]
    host.reset()
    at_rest, settled, most = host.read(), 0, HANDLES
    freed = FreedBlocks(request.batch)
    until = time.monotonic() + request.limit_s
    lost: int | None = None
    for step, batch in enumerate(batches, start=1):
        with freed if step == SETTLED else contextlib.nullcontext():
            subject.train(batch, request.batch)
        if step == SETTLED:
            settled, most = host.read(), most_blocks(batch)
            if freed.largest and most * freed.largest <= noise_bytes(at_rest, settled):
                break  # the loss of all blocks could not be seen
        if step >= SETTLED:
            counted = lost_blocks(at_rest, settled, host.read(), block_bytes=freed.largest, most=most)
            if counted == most or step >= SETTLED + most:
                lost = counted
                break
        if time.monotonic() > until:
            break
    context.phase("finish")
    del fillers
    return HandlesAnswer(lost_blocks=lost).model_dump(mode="json")


def noise_bytes(at_rest_bytes: int, settled_bytes: int) -> float:
    """Growth of a peak that is noise, for a step that raises memory from `at_rest_bytes` to `settled_bytes`."""
    return max(NOISE_BYTES, (settled_bytes - at_rest_bytes) * NOISE)


def lost_blocks(at_rest_bytes: int, settled_bytes: int, grown_bytes: int, *, block_bytes: int, most: int) -> int:
    """Return the blocks, at most `most`, that a training may lose if the peak grew from `settled_bytes` to `grown_bytes`.

    Args:
        at_rest_bytes: memory of the process without a batch.
        block_bytes: size of a block.
    """
    growth = grown_bytes - settled_bytes
    if growth <= noise_bytes(at_rest_bytes, settled_bytes):
        return 0
    return may_be_lost(math.ceil(growth / block_bytes), most) if block_bytes else most


def most_blocks(batch: object) -> int:
    """Return the number of blocks that can be lost to the handles of batches like `batch`: one for each batch."""
    return HANDLES // max(1, sum(1 for _ in tensors_in(batch)))


def hold_blocks(batch: object, largest_bytes: int, *, lost: int | None = None) -> mmap.mmap | None:
    """Allocate and touch memory of the blocks that are lost to the handles of batches like `batch`. Free it to end that.

    Args:
        lost: number of blocks that were counted. None: as many as possible.

    Raises:
        MemoryError: there is too little memory.
    """
    most = most_blocks(batch)
    size = (most if lost is None else min(most, lost)) * largest_bytes
    if size == 0:
        return None
    try:
        block_memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"cannot allocate {size} bytes for heap blocks that cannot be used again") from error
    for _ in range(0, size, PIECE_BYTES):  # in pieces, so that the watchdog can measure the growth
        block_memory.write(bytes(min(PIECE_BYTES, size - block_memory.tell())))
    return block_memory
