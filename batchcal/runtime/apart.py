"""Reading samples before DataLoader workers are started: in a process of its own, so that the workers inherit nothing of it.

A dataset that opens its file on the first read is safe with workers only as long as the process that forks them has read nothing:
else they inherit one open file and move each other's position.
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
from batchcal.workload.blame import blame

T = TypeVar("T")


def read_apart(read: Callable[[], T], *, workers: int) -> T:
    """The result of `read`, which reads samples. It has to pickle.

    Args:
        workers: DataLoader workers that are started later. 0: this process reads all samples, and `read` runs in it.

    Raises:
        UserCodeError: `read` raised, or its process ended.
        BatchcalError: as `read`.
    """
    if workers == 0 or "fork" not in multiprocessing.get_all_start_methods():
        return read()
    context = multiprocessing.get_context("fork")
    answers, answer = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(answer, read), name="batchcal-read", daemon=True)
    process.start()
    answer.close()
    try:
        result: T | BatchcalError = pickle.loads(answers.recv_bytes())
    except EOFError:
        process.join()
        raise UserCodeError(
            f"the process that read samples ended with exit code {process.exitcode}",
            known="it read the training data once, to learn the sizes of its samples, as a DataLoader worker reads it",
            try_="--workers 0",
        ) from None
    finally:
        answers.close()
        process.join()
        process.close()
    if isinstance(result, BatchcalError):
        raise result
    return result


def _answer(answer: Connection, read: Callable[[], object]) -> None:
    """Run `read` as a DataLoader worker runs: with one thread, since those of the parent are not there."""
    end_with_the_parent(0)
    torch.set_num_threads(1)
    try:
        result = read()
    except BatchcalError as error:
        result = error
    except Exception as error:  # noqa: BLE001 - the user's dataset may raise anything, also what does not pickle
        result = blame(error, "reading the training data", try_="--workers 0")
    answer.send_bytes(pickle.dumps(result))
    answer.close()
