"""A labelled corpus: what runs out of memory says, at any depth of the chain, and what only sounds like it."""

from __future__ import annotations

import errno
import traceback

import pytest

from batchcal.guard.children.memory_errors import MemoryError_, memory_error
from batchcal.guard.children.report import FRAMES, describe, shorten


def runtime(text: str) -> BaseException:
    return RuntimeError(text)


class OutOfMemoryError(RuntimeError):
    """As torch's."""


OutOfMemoryError.__module__ = "torch"


class AcceleratorError(RuntimeError):
    """As torch's."""


AcceleratorError.__module__ = "torch"


class BudgetError(ValueError):
    """A user's own."""


class OwnRuntimeError(RuntimeError):
    """A user's own that is also a RuntimeError."""


OwnRuntimeError.__module__ = "shop.billing"

CORPUS: list[tuple[BaseException, MemoryError_ | None]] = [
    (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"), "accelerator"),
    (OutOfMemoryError("XPU out of memory. Tried to allocate 2.00 GiB"), "accelerator"),
    (runtime("HIP out of memory. Tried to allocate 20.00 MiB"), "accelerator"),
    (
        runtime("MPS backend out of memory (MPS allocated: 17.7 GB, other allocations: 1.2 GB, max allowed: 18.1 GB)"),
        "accelerator",
    ),
    (AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), "accelerator"),
    (runtime("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "accelerator"),
    (runtime("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), "suspect"),
    (runtime("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "accelerator"),
    (runtime("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "suspect"),
    (
        runtime("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."),
        "suspect",
    ),
    (runtime("cuFFT error: CUFFT_ALLOC_FAILED"), "accelerator"),
    (runtime("GET was unable to find an engine to execute this computation"), "suspect"),
    (runtime("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"), "accelerator"),
    (runtime("std::bad_alloc: out_of_memory: CUDA error at: memory_resource.hpp"), "accelerator"),
    (
        runtime(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
        ),
        "host",
    ),
    (
        runtime(
            "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
        ),
        "host",
    ),
    (MemoryError(), "host"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
    (runtime("unable to mmap 4096 bytes from file </x>: Cannot allocate memory (12)"), "host"),
    (runtime("could not create a primitive"), "suspect"),
    (runtime("could not create a memory object"), "suspect"),
    (runtime("could not execute a primitive"), "suspect"),
    (runtime("could not create a memory descriptor for a matmul"), "suspect"),
    (runtime("std::bad_alloc"), "suspect"),
    (runtime("CUDA out of memory"), "accelerator"),
    (runtime("[rank0]: CUDA out of memory. Tried to allocate 2.00 GiB"), "accelerator"),
    (runtime("[enforce fail] posix_memalign: Cannot allocate memory"), "host"),
    (SystemError("error return without exception set"), "suspect"),
    (OSError("could not get source code"), "suspect"),
    (runtime("can't start new thread"), "suspect"),
    (ImportError("libfoo.so: failed to map segment from shared object"), "suspect"),
    (runtime("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"), "shm"),
    (runtime("unable to write to file </torch_9_8_7>: No space left on device (28)"), "shm"),
    (
        runtime("DataLoader worker (pid 7) is killed by signal: Bus error. Out of shared memory?"),
        "shm",
    ),
    (runtime("DataLoader worker (pid 7) is killed by signal: Killed."), "worker"),
    (runtime("DataLoader worker (pid(s) 12) exited unexpectedly"), "worker"),
    # What only sounds like it.
    (ValueError("you are out of memory budget: 3 of 2 tokens"), None),
    (BudgetError("CUDA out of memory"), None),
    (OwnRuntimeError("out of memory. Please buy more"), None),
    (runtime("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), None),
    (KeyError("DefaultCPUAllocator: can't allocate memory"), None),
    (FileNotFoundError(errno.ENOENT, "No such file or directory"), None),
    (runtime("expected scalar type Float but found Half"), None),
    (ZeroDivisionError("division by zero"), None),
    (runtime("out of memory"), None),
    (runtime("we are out of memory of the game"), None),
    (runtime("the CUDA out of memory handler of this game is missing"), None),
    (runtime("player 3 cannot allocate memory cards"), None),
    (runtime("could not create a memory of the day"), None),
    (runtime("CUDA error: out of memory slots in the replay buffer"), None),
    (ImportError("No module named 'transformers'"), None),
    (AcceleratorError("CUDA error: device-side assert triggered"), None),
]


@pytest.mark.parametrize(("error", "expected"), CORPUS)
def test_every_error_message_is_classified_correctly(error: BaseException, expected: MemoryError_ | None) -> None:
    assert memory_error(describe(error, "measure")) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [pair for pair in CORPUS if pair[1] is not None],
)
@pytest.mark.parametrize("how", ["cause", "context", "deep"])
def test_a_memory_error_is_recognized_through_its_exception_chain(error: BaseException, expected: MemoryError_, how: str) -> None:
    outer: BaseException = KeyError("batch")
    if how == "cause":
        outer.__cause__ = error
    elif how == "context":
        outer.__context__ = error
    else:
        middle = RuntimeError("training step 3 failed")
        middle.__cause__ = error
        outer.__cause__ = middle
    assert memory_error(describe(outer, "measure")) == expected


def test_a_suppressed_exception_context_is_ignored() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("a better story") from None
    except ValueError as error:
        assert memory_error(describe(error, "measure")) is None


def test_a_cyclic_exception_chain_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert memory_error(describe(first, "measure")) is None


def test_an_error_whose_str_raises_is_still_described() -> None:
    class Liar(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    described = describe(Liar(), "load")
    assert "could not be read" in described.chain[0].message


def test_a_headline_is_one_line() -> None:
    assert describe(ValueError("one\ntwo"), "load").headline == "ValueError: one"
    assert describe(KeyboardInterrupt(), "load").headline == "KeyboardInterrupt"


def test_a_deep_recursion_is_described_by_its_last_frames() -> None:
    """A million frames took minutes to format; the number of frames is what decides, at any depth."""

    def deeper(left: int) -> None:
        if not left:
            raise RecursionError("too deep")
        deeper(left - 1)

    try:
        deeper(FRAMES + 100)
    except RecursionError as error:
        shorten(error)
        assert len(traceback.extract_tb(error.__traceback__)) == FRAMES
        assert describe(error, "load").headline == "RecursionError: too deep"
