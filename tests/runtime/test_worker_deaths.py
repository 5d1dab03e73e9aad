"""The death of a worker is told where it does no harm."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

import pytest

from batchcal.runtime.worker_deaths import raise_outside_of_queues


class Died(Exception):
    pass


@pytest.fixture(autouse=True)
def dying() -> Iterator[None]:
    """Somebody who raises at every SIGCHLD, as torch does while workers are watched."""
    raise_outside_of_queues()
    before = signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, died)
    raise_outside_of_queues()
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


def test_a_death_while_a_batch_is_asked_for_leaves_no_lock_taken() -> None:
    queue = multiprocessing.get_context("fork").Queue()
    taken = DiesWhenTaken()
    vars(queue)["_notempty"] = taken
    queue.put(1)
    assert taken.dead
    assert taken.acquire(timeout=10.0)
    taken.release()
    queue.close()
    queue.join_thread()


def test_elsewhere_it_is_told_at_once() -> None:
    with pytest.raises(Died):
        signal.raise_signal(signal.SIGCHLD)


def test_it_is_put_around_torch_s_handler_once() -> None:
    now = signal.getsignal(signal.SIGCHLD)
    raise_outside_of_queues()
    assert signal.getsignal(signal.SIGCHLD) is now


def test_in_a_thread_it_does_nothing() -> None:
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            raise_outside_of_queues()
        except BaseException as error:  # noqa: BLE001 - for the main thread to see
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert not failed
