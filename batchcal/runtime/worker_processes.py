"""Signals and end of DataLoader workers: their parent handles the signals, and they leave nothing behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess
from types import FrameType

from torch.utils.data import DataLoader, dataloader

from batchcal.guard.children.child import follow_parent
from batchcal.guard.cleanup.shared_names import own_worker_folder
from batchcal.runtime.sample_fetcher import name_samples, name_samples_in_worker
from batchcal.runtime.worker_deaths import end_by_kill
from batchcal.runtime.worker_handles import ForgettingIterator


def leave_signals_to_the_parent(worker: int) -> None:
    """Ignore SIGINT and SIGTERM: Ctrl-C, SLURM, systemd and `timeout` signal every process of a job, and the parent ends cleanly.

    The workers end with the parent. A handler ignores the signals: programs that a dataset starts would inherit SIG_IGN.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore_signal)
    name_samples_in_worker()


def end_with_the_parent(worker: int) -> None:
    """Call `leave_signals_to_the_parent`, and end the worker if its parent is killed."""
    leave_signals_to_the_parent(worker)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if os.getppid() == parent.pid:
        follow_parent()
    else:
        # The fork server started it. The fork server lives as long as its last worker, and the worker as long as the fork server.
        threading.Thread(target=_end_after, args=(parent,), name="batchcal-parent", daemon=True).start()
    if not parent.is_alive():
        os._exit(1)


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _ignore_signal(number: int, frame: FrameType | None) -> None:
    return None


class Loader(DataLoader[object]):
    """A DataLoader whose workers ignore SIGTERM. SIGKILL ends them where torch would send SIGTERM. The loader frees the handles
    of their batches."""

    def _get_iterator(self) -> dataloader._BaseDataLoaderIter:
        # The kernel watches the thread that started a worker: only the main thread lives as long as the process.
        if self.worker_init_fn is leave_signals_to_the_parent and threading.current_thread() is threading.main_thread():
            self.worker_init_fn = end_with_the_parent
        # A killed worker leaves the folder of its sockets. For forked workers, we choose it and remove it with the iterator.
        context = self.multiprocessing_context or multiprocessing
        folder = own_worker_folder() if self.num_workers and context.get_start_method() == "fork" else None
        with folder or contextlib.nullcontext():
            iterator = self._new_iterator()
        if folder is not None:
            folder.goes_with(iterator)
        workers: object = getattr(iterator, "_workers", ())
        for worker in workers if isinstance(workers, list) else ():
            end_by_kill(worker)
        return iterator

    def _new_iterator(self) -> dataloader._BaseDataLoaderIter:
        if self.num_workers == 0:
            iterator = super()._get_iterator()
            name_samples(iterator)
            return iterator
        self.check_worker_number_rationality()
        return ForgettingIterator(self)
