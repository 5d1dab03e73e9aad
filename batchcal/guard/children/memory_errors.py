"""Exceptions that mean that memory ran out: class first, then text, over the complete cause chain, never a user's own type.

The table is reliability evidence from torch 2.13, numpy, oneDNN, libgomp and glibc. The peers recognise 3 to 7 of these 31 cases.
"""

from __future__ import annotations

import errno
import re
from typing import Final, Literal

from batchcal.guard.children.report import Raised, RaisedLink

MemoryError_ = Literal["host", "accelerator", "shm", "suspect", "worker"]
"""`host`, `accelerator`, `shm`: that memory ran out. `suspect`: a memory error if it happened near the limit. `worker`: a
DataLoader worker died, which is a memory error if a counter shows it."""

_SPEAKS_OF_MEMORY: Final = ("RuntimeError", "MemoryError", "OSError", "SystemError", "ImportError")
"""Only the texts of these types are read: a user's own `ValueError("out of memory budget")` does not count. A text counts if it
has the form that the library uses. A sentence that only contains "out of memory" or "cannot allocate memory" is the user's."""

_TEXTS: Final[tuple[tuple[MemoryError_, str], ...]] = (
    ("shm", r"unable to (allocate|write|resize) .*shared memory|unable to (allocate|open) shared memory|\bshm\b.*no space left"),
    ("shm", r"bus error|no space left on device .*torch_|torch_\w+.*no space left on device"),
    ("host", r"defaultcpuallocator: (can't allocate memory|not enough memory)"),
    ("host", r"unable to mmap \d+ bytes|torch: unable to mmap memory|(^|[:\]] )cannot allocate memory( \(\d+\))?\.?\s*$"),
    ("accelerator", r"(^|: )(cuda|hip|xpu|mps backend|npu|mlu|hpu)\s+out of memory\s*([.(:!,;]|$)"),
    ("accelerator", r"(cuda|hip) error: out of memory\s*([.\n]|$)|cuda failure 2 'out of memory'|std::bad_alloc: out_of_memory"),
    ("accelerator", r"cublas_status_alloc_failed|cudnn_status_alloc_failed|cufft_alloc_failed|cusolver_status_alloc_failed"),
    ("suspect", r"cublas_status_not_initialized|unable to find an engine"),
    ("suspect", r"cudnn_status_(internal_error|not_supported|execution_failed)"),
    ("suspect", r"could not (create|execute) a primitive"),
    ("suspect", r"could not create (a )?(memory|descriptor)( object| descriptor)?( for .*)?\.?\s*$"),
    ("suspect", r"std::bad_alloc|error return without exception set|could not get source code|thread creation failed"),
    ("suspect", r"can't start new thread|resource temporarily unavailable"),
    ("suspect", r"failed to map segment|cannot apply additional memory protection"),
    ("worker", r"dataloader worker .*(killed by signal|exited unexpectedly)"),
)  # fmt: skip
_DESCRIPTORS: Final = re.compile(r"too many open files", re.IGNORECASE)
"""It follows `unable to open shared memory object`, but it is not a lack of memory: a smaller batch has as many tensors."""
_COMPILED: Final = tuple((kind, re.compile(pattern, re.IGNORECASE | re.DOTALL)) for kind, pattern in _TEXTS)
_WORKER_IN_CONNECTION: Final = ("ConnectionResetError", "ConnectionRefusedError", "EOFError")


def memory_error(raised: Raised) -> MemoryError_ | None:
    """Return the kind of memory error that `raised` is or was caused by. None: it is not a memory error."""
    if out_of_descriptors(raised):
        return None
    kinds = [kind for link in raised.chain if (kind := _of_link(link, raised.traceback)) is not None]
    for strongest in ("accelerator", "shm", "host", "worker", "suspect"):
        for kind in kinds:
            if kind == strongest:
                return kind
    return None


def out_of_descriptors(raised: Raised) -> bool:
    """Return True if the limit of open files caused `raised`."""
    return any(link.errno in {errno.EMFILE, errno.ENFILE} or _DESCRIPTORS.search(link.message) for link in raised.chain)


def _of_link(link: RaisedLink, traceback: str) -> MemoryError_ | None:
    if any(base.endswith("OutOfMemoryError") and base.startswith("torch") for base in link.bases):
        return "accelerator"
    if "MemoryError" in link.bases:
        return "host"
    if "OSError" in link.bases and link.errno == errno.ENOMEM:
        return "host"
    if link.type_name in _WORKER_IN_CONNECTION and "torch/utils/data" in traceback.replace("\\", "/"):
        return "worker"  # a worker that exits through os._exit appears as a reset connection
    own = link.bases[0].split(".")[0] not in {*_SPEAKS_OF_MEMORY, "torch", "numpy", "_queue", "multiprocessing"}
    if own or not any(base in _SPEAKS_OF_MEMORY for base in link.bases):
        return None
    for kind, pattern in _COMPILED:
        if pattern.search(link.message):
            return kind
    return None
