"""Read samples before DataLoader workers are started: in a separate process, so that the workers inherit nothing from it.

A dataset that opens its file on the first read is safe with workers only if the process that forks them has not read a sample.
Otherwise they inherit one open file and change each other's position in it.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

from batchcal.core.errors import BatchcalError, UserCodeError
from batchcal.runtime.worker_processes import end_with_the_parent
from batchcal.workload.spec.user_traceback import blame

T = TypeVar("T")


def read_separately(read: Callable[[], T], *, workers: int) -> T:
    """Return the result of `read`, which reads samples. The result must be picklable.

    Args:
        workers: DataLoader workers that are started later. 0: this process reads all samples, and `read` runs in it.

    Raises:
        UserCodeError: `read` raised, or its process ended.
        BatchcalError: `read` raised it.
    """
    if workers == 0 or "fork" not in multiprocessing.get_all_start_methods():
        return read()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read_and_send, args=(sender, read), name="batchcal-read", daemon=True)
    process.start()
    sender.close()
    try:
        result: T | BatchcalError = pickle.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        raise UserCodeError(
            f"the process that read samples ended with exit code {process.exitcode}",
            known="it read the training data once, like a DataLoader worker, to measure the sizes of the samples",
            try_="--workers 0",
        ) from None
    finally:
        receiver.close()
        process.join()
        process.close()
    if isinstance(result, BatchcalError):
        raise result
    return result


def _read_and_send(sender: Connection, read: Callable[[], object]) -> None:
    """Run `read` like a DataLoader worker: with one thread, because the parent's threads do not exist here."""
    end_with_the_parent(0)
    torch.set_num_threads(1)
    try:
        result = read()
    except BatchcalError as error:
        result = error
    except Exception as error:  # noqa: BLE001 - the user's dataset may raise any error, also one that is not picklable
        result = blame(error, "reading the training data", try_="--workers 0")
    sender.send_bytes(pickle.dumps(result))
    sender.close()
