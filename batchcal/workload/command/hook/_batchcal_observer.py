"""Observes the optimizer steps of a training command that is not written for batchcal.

It runs in the processes of the command, with their Python and their torch: it uses only the standard library, and prints
nothing. `sitecustomize.py` in this folder imports it once torch has been imported.

An optimizer step is a maximal run of calls of `Optimizer.step` between two outermost backward passes. In a process without an
optimizer, each backward pass is a step. After the requested number of steps, the process sends its report and waits: the parent
kills all processes of the command, so that no line of the user's code runs after the last step.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time

SOCKET_VARIABLE = "BATCHCAL_PROBE_SOCKET"
STEPS_VARIABLE = "BATCHCAL_PROBE_STEPS"
"""Number of optimizer steps after which a process stops."""
STEPS = 8
WARM_UP_STEPS = 2
"""Steps before the process reports that its memory may be limited: after the first one, the state of the optimizer exists."""
CONNECT_LIMIT_S = 5.0
WITHOUT_OPTIMIZER = 256
"""Number of backward passes without a call of an optimizer after which each counts as a step: some libraries have optimizers that
torch does not know. More accumulation steps than this are not expected."""
DEPTH = 10
"""Longest chain of causes of an error."""
TEXT_LIMIT = 16 * 1024
"""Characters of the message of an error."""


class Connection:
    """Socket to the supervisor of the command. Opened when it is first used, since most processes never train."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def send(self, message: dict[str, object]) -> None:
        """Send `message`. A supervisor that is gone is not an error of the user's program."""
        with contextlib.suppress(OSError, ValueError):
            self._open().sendall(json.dumps(message).encode() + b"\n")

    def wait(self) -> None:
        """Wait for an answer."""
        with contextlib.suppress(OSError):
            self._open().recv(4096)

    def close(self) -> None:
        """Close the socket, if it is open."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(CONNECT_LIMIT_S)
            connection.connect(os.environ[SOCKET_VARIABLE])
            self._socket = connection
        return self._socket


class Observer:
    """Steps of this process so far."""

    def __init__(self, steps: int) -> None:
        self._wanted = steps
        self._connection = Connection()
        self._rank = int(os.environ.get("RANK") or 0)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._depth = 0
        self._backwards = 0
        """Outermost backward passes since the last step."""
        self._backwards_in_all = 0
        self._fires = 0
        """Calls of optimizers since the last backward pass began."""
        self._fires_in_all = 0
        self._usual_fires = 0
        """Calls of optimizers in each of the last steps. 0: unknown, or they differ."""
        self._last_fire_s = 0.0
        self._rows_at_fire: dict[int, int] = {}
        self._wait_s_at_fire = 0.0
        self._optimizers = 0
        self._rows: dict[int, int] = {}
        """Rows that loaders returned since the last step, by dataset."""
        self._wait_s = 0.0
        """Time in which loaders prepared batches, since the last step."""
        self._workers: dict[int, int] = {}
        """DataLoader workers by dataset."""
        self._lengths: dict[int, int] = {}
        """Number of samples by dataset. 0: unknown."""
        self._steps: list[dict[str, object]] = []
        self._is_done = False
        self._is_ending = False

    def optimizer_created(self) -> None:
        """Count an optimizer."""
        self._optimizers += 1

    def batch_returned(self, data: object, rows: int, waited_s: float, workers: int) -> None:
        """Count a batch that a DataLoader returned."""
        if os.getpid() == self._pid:
            dataset = id(data)
            if dataset not in self._workers:
                self._lengths[dataset] = _length(data)
            self._rows[dataset] = self._rows.get(dataset, 0) + rows
            self._wait_s += waited_s
            self._workers[dataset] = workers

    def backward_begins(self) -> None:
        """Count a backward pass. It also shows that the step before it is complete."""
        self._depth += 1
        if self._depth > 1:
            return
        if os.getpid() != self._pid:  # forked: it trains, so it is a rank of its own
            optimizers = self._optimizers
            self._connection = Connection()
            self._rank = int(os.environ.get("RANK") or 0)
            self._reset()
            self._optimizers, self._depth = optimizers, 1
        if self._fires:
            self._end_step()
        elif self._backwards and self._steps_are_backwards():
            self._mark_end()
            self._end_step()
        self._backwards += 1
        self._backwards_in_all += 1

    def backward_ends(self) -> None:
        """End a backward pass. Optimizers that step within it have done so."""
        self._depth -= 1
        if self._depth == 0 and self._fires and self._is_last_fire():
            self._mark_end()
            self._end_step()

    def optimizer_stepped(self) -> None:
        """Count a call of an optimizer."""
        if os.getpid() != self._pid:
            return
        self._fires += 1
        self._fires_in_all += 1
        self._mark_end()
        if self._depth == 0 and self._is_last_fire():
            self._end_step()

    def _mark_end(self) -> None:
        """Note that the step ends here, unless its optimizers are called again. Later batches belong to the next step."""
        self._last_fire_s = time.perf_counter()
        self._rows_at_fire, self._wait_s_at_fire = dict(self._rows), self._wait_s

    def _is_last_fire(self) -> bool:
        """True if the requested steps are complete after this call. The number of calls of the earlier steps shows it."""
        return len(self._steps) + 1 >= self._wanted and self._fires == self._usual_fires

    def _steps_are_backwards(self) -> bool:
        return self._fires_in_all == 0 and (self._optimizers == 0 or self._backwards_in_all > WITHOUT_OPTIMIZER)

    def _end_step(self) -> None:
        fires, rows = self._fires, self._rows_at_fire
        self._usual_fires = fires if not self._steps or fires == self._usual_fires else 0
        step = {"at_s": self._last_fire_s, "backwards": self._backwards, "wait_s": self._wait_s_at_fire}
        self._steps.append({**step, "rows": sorted(rows.items())})
        self._rows = {dataset: count - rows.get(dataset, 0) for dataset, count in self._rows.items()}
        self._wait_s -= self._wait_s_at_fire
        self._backwards, self._fires = 0, 0
        if len(self._steps) == WARM_UP_STEPS:
            self._connection.send({"ready": self._rank})
            self._connection.wait()
        if len(self._steps) >= self._wanted and not self._is_ending:
            self.report("done")
            _wait_for_the_end()

    def report(self, ended: str, raised: dict[str, object] | None = None) -> None:
        """Send all that was observed, once. `ended` is `done`, `exit` or `raised`."""
        if self._is_done or os.getpid() != self._pid:
            return
        if self._fires:  # the program ended after this step
            self._is_ending = True
            self._end_step()
        self._is_done = True
        torch = sys.modules.get("torch")
        rank, world_size = self._place()
        threads = getattr(torch, "get_num_threads", int)()
        content: dict[str, object] = {
            "ended": ended,
            "steps": self._steps,
            "backwards": self._backwards_in_all,
            "workers": sorted(self._workers.items()),
            "lengths": sorted(self._lengths.items()),
            "threads": threads,
            "accelerator": _uses_accelerator(torch),
            "world_size": world_size,
            "raised": raised,
        }
        self._connection.send({"tell": content, "rank": rank})

    def _place(self) -> tuple[int, int]:
        """Rank and world size of the process group, else those of the environment."""
        distributed = sys.modules.get("torch.distributed")
        with contextlib.suppress(Exception):
            if getattr(distributed, "is_available", bool)() and getattr(distributed, "is_initialized", bool)():
                return int(getattr(distributed, "get_rank", int)()), int(getattr(distributed, "get_world_size", int)())
        return self._rank, int(os.environ.get("WORLD_SIZE") or 1)

    def torch_imported(self, version: str) -> None:
        """Report that this process has torch, so that its parent knows that it can be observed."""
        content = {"ended": "", "torch": version}
        self._connection.send({"tell": content, "rank": self._rank})
        self._connection.close()


def _wait_for_the_end() -> None:
    """Wait until the parent kills this process. Handlers of the user's code do not run."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        time.sleep(3600)


def safe_rows_of(batch: object) -> int:
    """Return `rows_of`. 0 if the batch does not let itself be read: its class belongs to the user."""
    try:
        return rows_of(batch)
    except Exception:  # noqa: BLE001 - see above
        return 0


def rows_of(batch: object, depth: int = 0) -> int:
    """Return the first dimension of the first tensor or array in a batch. 0: it has none."""
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else 0
    if depth > 3:
        return 0
    values = getattr(batch, "values", None)
    items = values() if callable(values) else batch
    if not isinstance(items, (list, tuple)) and not callable(values):
        items = vars(batch).values() if hasattr(batch, "__dict__") else ()
    for item in items if hasattr(items, "__iter__") else ():
        rows = rows_of(item, depth + 1)
        if rows:
            return rows
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], (str, int, float)):
        return len(batch)
    return 0


def _uses_accelerator(torch: object) -> bool:
    with contextlib.suppress(Exception):
        return bool(getattr(getattr(torch, "cuda", None), "is_initialized", bool)())
    return False


def _length(data: object) -> int:
    try:
        return len(data) if hasattr(data, "__len__") else 0
    except Exception:  # noqa: BLE001 - the user's __len__ may do anything
        return 0


def observe() -> None:
    """Register with torch, which has just been imported."""
    observer = Observer(int(os.environ.get(STEPS_VARIABLE) or STEPS))
    import torch
    from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
    from torch.utils.data import dataloader

    backward = torch.autograd.backward
    make_optimizer = Optimizer.__init__
    next_batch = dataloader._BaseDataLoaderIter.__next__

    def observed_backward(*args: object, **options: object) -> object:
        observer.backward_begins()
        try:
            return call(backward, *args, **options)
        finally:
            observer.backward_ends()

    def observed_optimizer(self: object, *args: object, **options: object) -> None:
        observer.optimizer_created()
        call(make_optimizer, self, *args, **options)

    def observed_batch(self: object) -> object:
        began_s = time.perf_counter()
        batch: object = call(next_batch, self)
        waited_s = time.perf_counter() - began_s
        observer.batch_returned(
            getattr(self, "_dataset", None), safe_rows_of(batch), waited_s, int(getattr(self, "_num_workers", 0))
        )
        return batch

    def stepped(optimizer: object, args: object, options: object) -> None:
        observer.optimizer_stepped()

    for name, function in (("__wrapped__", backward), ("__doc__", backward.__doc__)):
        setattr(observed_backward, name, function)
    setattr(torch.autograd, "backward", observed_backward)  # noqa: B010 - a type checker refuses the assignment
    setattr(Optimizer, "__init__", observed_optimizer)  # noqa: B010
    setattr(dataloader._BaseDataLoaderIter, "__next__", observed_batch)  # noqa: B010
    register_optimizer_step_post_hook(stepped)
    observer.torch_imported(str(torch.__version__))
    atexit.register(observer.report, "exit")
    _observe_errors(observer)


def call(function: object, *args: object, **options: object) -> object:
    """Call `function`, whose signature belongs to torch."""
    assert callable(function)
    result: object = function(*args, **options)
    return result


def _observe_errors(observer: Observer) -> None:
    """Report an exception that ends the program, before Python prints it."""
    print_error = sys.excepthook

    def observed(kind: type[BaseException], error: BaseException, trace: object) -> None:
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(Exception):
                observer.report("raised", {"chain": _chain_of(error)})
        call(print_error, kind, error, trace)

    sys.excepthook = observed


def _chain_of(error: BaseException) -> list[dict[str, object]]:
    """Return an exception with its causes, as `guard.children.report` writes them."""
    links: list[dict[str, object]] = []
    current: BaseException | None = error
    while current is not None and len(links) < DEPTH:
        links.append(
            {
                "type_name": _name(type(current)),
                "bases": [_name(base) for base in type(current).__mro__],
                "message": str(current)[:TEXT_LIMIT],
                "errno": current.errno if isinstance(current, OSError) else None,
            }
        )
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return links


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
