"""Shuffled samples read by DataLoader workers and by the process itself, as digests that can be compared."""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset, IterableDataset

from batchcal.calibration.records.workers import Start
from batchcal.machine.meters import private_bytes, read_status
from batchcal.measure.workers.comparison import FAILED
from batchcal.measure.workers.growth import MemoryPoint
from batchcal.runtime.batches import unchanged
from batchcal.runtime.worker_deaths import raise_while_fetching
from batchcal.runtime.worker_processes import Loader, leave_signals_to_the_parent
from batchcal.workload.data.digest import digest_of

COMPARED_BATCH: Final = 8
COMPARED_BATCHES: Final = 32
GROWTH_BATCH: Final = 16
READINGS: Final = 8
"""Number of readings of each worker's memory. One reading takes 30 ms per GiB."""
KILL_LIMIT_S: Final = 2.0
TIMED_OUT: Final = "DataLoader timed out after"
"""Beginning of torch's own message. A dataset may raise its own timeout, for example of a database."""
Failure = Literal["", "hang", "die", "raise"]


class SampleRequest(NamedTuple):
    """One sample to read."""

    place: int
    """Index in the dataset."""
    digest: bool
    """False: it is read and not hashed."""


@runtime_checkable
class _ReadsBatches(Protocol):
    def __getitems__(self, indices: Sequence[int], /) -> object: ...


class Digests(Dataset[object]):
    """The samples of `data` as digests. Random augmentations depend on `seed` and the index, not on the process: the global
    generators of Python, NumPy and torch are seeded before each read."""

    def __init__(self, data: Dataset[object], seed: int) -> None:
        self.data = data
        self.seed = seed

    def __getitems__(self, requests: Sequence[SampleRequest]) -> list[str]:
        if isinstance(self.data, _ReadsBatches):  # as torch's fetcher prefers it
            return self._batch(self.data.__getitems__, [request.place for request in requests], digest=requests[0].digest)
        return [
            text
            for request in requests
            for text in self._batch(lambda indices: [self.data[indices[0]]], [request.place], digest=request.digest)
        ]

    def _batch(self, read: Callable[[Sequence[int]], object], indices: list[int], *, digest: bool) -> list[str]:
        """Return one digest for each index: of its sample, or of the complete result if that is not a list of samples."""
        _seed(zlib.crc32(f"{self.seed}/{indices[0]}".encode()))
        try:
            samples = read(indices)
            if not digest:
                return [""] * len(indices)
            if isinstance(samples, list) and len(samples) == len(indices):
                return [digest_of(sample) for sample in samples]
            return [digest_of(samples)] * len(indices)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's dataset; it may fail alike in the process
            return [f"{FAILED}{type(error).__name__}: {error}"[:400]] * len(indices)


class StreamDigests(IterableDataset[object]):
    """A stream that is only read. Its samples are not hashed."""

    def __init__(self, data: IterableDataset[object]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[str]:
        for _ in self.data:
            yield ""


@dataclass
class WorkersRun:
    """Result of the reads in workers."""

    batches: list[tuple[list[int], list[str]]] = field(default_factory=list)
    """Indices and digests of the compared batches."""
    points: list[MemoryPoint] = field(default_factory=list)
    """Samples read by one worker, and private memory of the worker that holds most."""
    failed: Failure = ""
    error: str = ""


def read_with_workers(
    data: Dataset[object], samples: int | None, *, workers: int, start: Start | None, seed: int, read_s: float, hang_s: float
) -> WorkersRun:
    """Read shuffled samples with a real DataLoader. Its workers start before this process has read any sample: if the dataset
    opens a file on its first read, each worker has its own, as in a training."""
    run = WorkersRun()
    plan = [] if samples is None else _compared(samples, seed)
    raise_while_fetching()
    before = set(multiprocessing.active_children())
    loader = Loader(
        StreamDigests(data) if isinstance(data, IterableDataset) else Digests(data, seed),
        batch_sampler=None if isinstance(data, IterableDataset) else _Order(samples or 0, seed, plan),
        batch_size=GROWTH_BATCH if isinstance(data, IterableDataset) else 1,
        collate_fn=unchanged,
        num_workers=workers,
        prefetch_factor=2,
        persistent_workers=True,  # so that a last reading of the workers is possible after a stream ends
        timeout=hang_s,
        multiprocessing_context=start,
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=leave_signals_to_the_parent,
    )
    iterator: Iterator[object] | None = None
    try:
        iterator = iter(loader)
        _deliver(iterator, plan, run, read_s=read_s, pids=lambda: _pids(before))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever starting a worker or sending it the dataset raises
        run.failed, run.error = _failure(error), _in_short(error)
    finally:
        del iterator
        if run.failed != "hang":
            loader._iterator = None  # torch ends its workers: a killed one may leave a semaphore that it was creating
        _end(set(multiprocessing.active_children()) - before)
    return run


def read_in_process(
    data: Dataset[object], batches: Sequence[list[int]], *, seed: int, read_s: float
) -> tuple[list[tuple[list[str], list[str]]], list[MemoryPoint]]:
    """Read `batches` twice in this process, while there is time. Return the digests of both reads, and readings of the memory."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: sums over other parts differ in their last bits
    digests, digest_pairs, points = Digests(data, seed), [], [MemoryPoint(0, _memory_bytes())]
    end_s = time.monotonic() + read_s
    read = 0
    try:
        for indices in batches:
            requests = [SampleRequest(index, digest=True) for index in indices]
            digest_pairs.append((digests.__getitems__(requests), digests.__getitems__(requests)))
            read += len(indices)
            points.append(MemoryPoint(read, _memory_bytes()))
            if time.monotonic() > end_s:
                break
    finally:
        torch.set_num_threads(threads)
    return digest_pairs, points


def _end(workers: set[multiprocessing.process.BaseProcess]) -> None:
    """Kill the workers. torch waits for those that hang, and its handler of SIGCHLD treats a killed worker as an accident."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(KILL_LIMIT_S)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _deliver(
    iterator: Iterator[object],
    plan: Sequence[list[SampleRequest]],
    run: WorkersRun,
    *,
    read_s: float,
    pids: Callable[[], list[int]],
) -> None:
    workers, delivered = max(1, len(pids())), 0
    end_s: float | None = None
    next_reading = 0.0
    for position, batch in enumerate(iterator):
        now = time.monotonic()
        if end_s is None:
            end_s = now + read_s  # the time of the start does not count
        delivered += len(batch) if isinstance(batch, list) else 1
        if position < len(plan) and plan[position][0].digest and isinstance(batch, list):
            run.batches.append(([request.place for request in plan[position]], [str(text) for text in batch]))
        ended = now >= end_s
        if ended or now >= next_reading:
            run.points.append(MemoryPoint(delivered // workers, max(map(private_bytes, pids()), default=0)))
            next_reading = time.monotonic() + read_s / READINGS
        if ended:
            return
    run.points.append(MemoryPoint(delivered // workers, max(map(private_bytes, pids()), default=0)))


def _pids(before: set[multiprocessing.process.BaseProcess]) -> list[int]:
    return [process.pid for process in set(multiprocessing.active_children()) - before if process.pid is not None]


def _compared(samples: int, seed: int) -> list[list[SampleRequest]]:
    """Return the batches of shuffled samples to compare, each sample at most once."""
    order = random.Random(seed).sample(range(samples), min(samples, COMPARED_BATCH * COMPARED_BATCHES))
    requests = [SampleRequest(index, digest=True) for index in order]
    return [requests[at : at + COMPARED_BATCH] for at in range(0, len(requests), COMPARED_BATCH)]


class _Order:
    """The compared batches, then random batches without end."""

    def __init__(self, samples: int, seed: int, compared: list[list[SampleRequest]]) -> None:
        self._samples, self._seed, self._first = samples, seed, compared

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        yield from self._first
        draw = random.Random(self._seed + 1).randrange
        while True:
            yield [SampleRequest(draw(self._samples), digest=False) for _ in range(GROWTH_BATCH)]


def _seed(number: int) -> None:
    random.seed(number)
    torch.default_generator.manual_seed(number)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(number)


def _memory_bytes() -> int:
    status = read_status()
    return 0 if status is None else status.hard_bytes


def _failure(error: Exception) -> Failure:
    text = str(error)
    if text.startswith(TIMED_OUT):
        return "hang"
    return "die" if "exited unexpectedly" in text or "is killed by signal" in text else "raise"


def _in_short(error: Exception) -> str:
    """Return the last line of a worker's traceback, which torch wraps, or else the first line of the message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if lines[0].startswith("Caught ") else lines[0]).strip()[:400]
