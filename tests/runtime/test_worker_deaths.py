"""The death of a worker is raised where it does no harm, and named."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

import pytest
from torch.utils.data import Dataset, dataloader

from batchcal.guard.children.memory_errors import memory_error
from batchcal.guard.children.report import describe
from batchcal.runtime.worker_deaths import (
    WorkerDeath,
    death_behind_a_lost_connection,
    raise_postponed,
    raise_while_fetching,
    worker_death,
)
from batchcal.runtime.worker_processes import Loader


class Died(Exception):
    pass


@pytest.fixture(autouse=True)
def dying() -> Iterator[None]:
    """A handler that raises at every SIGCHLD, as torch's does while workers are watched."""
    raise_while_fetching()
    before = signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, died)
    raise_while_fetching()
    yield
    signal.signal(signal.SIGCHLD, before)


def died(number: int, frame: FrameType | None) -> None:
    raise Died


class DiesWhenTaken(threading.Condition):
    """A worker dies in the moment in which the queue's lock is taken first."""

    dead = False

    def __enter__(self) -> bool:
        taken = super().__enter__()
        if not self.dead:
            self.dead = True
            signal.raise_signal(signal.SIGCHLD)
        return taken

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, value, trace)


def test_a_worker_death_during_a_batch_request_releases_the_queue_lock() -> None:
    queue = multiprocessing.get_context("fork").Queue()
    taken = DiesWhenTaken()
    vars(queue)["_notempty"] = taken
    queue.put(1)
    assert taken.dead
    assert taken.acquire(timeout=10.0)
    taken.release()
    queue.close()
    queue.join_thread()


def test_a_worker_death_is_raised_before_the_next_wait() -> None:
    signal.raise_signal(signal.SIGCHLD)
    with pytest.raises(Died):
        raise_postponed()
    raise_postponed()


class DiesMeanwhile:
    """A queue of batches during whose wait a worker dies."""

    def get(self, timeout: float) -> None:
        signal.raise_signal(signal.SIGCHLD)


def test_a_worker_death_while_waiting_for_a_batch_is_raised_immediately() -> None:
    iterator = object.__new__(dataloader._MultiProcessingDataLoaderIter)
    vars(iterator).update(_data_queue=DiesMeanwhile(), _workers=[], _shutdown=True)
    with pytest.raises(Died):
        iterator._try_get_data()


def test_the_signal_handler_of_torch_is_wrapped_only_once() -> None:
    now = signal.getsignal(signal.SIGCHLD)
    raise_while_fetching()
    assert signal.getsignal(signal.SIGCHLD) is now


class Numbers(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index

    def __len__(self) -> int:
        return 1000


@pytest.mark.child
def test_a_lost_connection_reports_the_signal_of_the_dead_worker() -> None:
    batches = iter(Loader(Numbers(), num_workers=1, multiprocessing_context="fork"))
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    assert death_behind_a_lost_connection() == WorkerDeath(signal.SIGKILL)
    raise_while_fetching()


@pytest.mark.child
def test_a_lost_connection_without_a_dead_worker_reports_no_signal() -> None:
    assert death_behind_a_lost_connection() == WorkerDeath()


def test_raise_while_fetching_does_nothing_in_a_thread() -> None:
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            raise_while_fetching()
        except BaseException as error:  # noqa: BLE001 - for the main thread to see
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert not failed


@pytest.mark.parametrize(
    ("text", "death"),
    [
        ("DataLoader worker (pid 8) is killed by signal: Terminated. ", WorkerDeath(signal.SIGTERM)),
        ("DataLoader worker (pid 8) is killed by signal: Killed. ", WorkerDeath(signal.SIGKILL)),
        ("DataLoader worker (pid 8) is killed by signal: Bus error. It is possible that", WorkerDeath(signal.SIGBUS)),
        ("DataLoader worker (pid 8) exited unexpectedly with exit code 3. Details are lost", WorkerDeath()),
        ("DataLoader worker (pid(s) 8, 9) exited unexpectedly", WorkerDeath()),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_the_cause_of_a_worker_death_is_read_from_the_torch_message(text: str, death: WorkerDeath | None) -> None:
    raised = describe(RuntimeError(text), "measure")
    assert worker_death(raised) == death
    assert (memory_error(raised) is not None) == (death is not None)


def test_the_signal_of_a_worker_death_is_read_from_the_chained_exception() -> None:
    error = RuntimeError("DataLoader worker (pid(s) 8) exited unexpectedly")
    error.__cause__ = RuntimeError("DataLoader worker (pid 8) is killed by signal: Killed. ")
    assert worker_death(describe(error, "measure")) == WorkerDeath(signal.SIGKILL)
