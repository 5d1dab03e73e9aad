"""Comparison of samples from workers with samples from the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from batchcal.guard.children.report import READING

FAILED: Final = "\0"
"""First character of the text that stands for a sample that raised an error."""
Texts = Sequence[str]
"""One text per sample: a digest, or FAILED and the error."""


class Compared(NamedTuple):
    """Number of samples that differ, and the kind of the difference."""

    compared: int = 0
    """Samples that the process reads alike each time."""
    unstable: int = 0
    """Samples for which two reads in the process differ."""
    wrong: int = 0
    """Samples of `compared` that differ in a worker."""
    swapped: int = 0
    """Samples of `wrong` that are the record of another index."""
    example: str = ""
    failed: Literal["", "raise"] = ""
    error: str = ""
    """An error that only workers raise."""


def compare(from_workers: Sequence[tuple[Sequence[int], Texts]], from_process: Sequence[tuple[Texts, Texts]]) -> Compared:
    """Compare batch by batch, as far as the process has read.

    Args:
        from_workers: indices and digests.
        from_process: digests of two reads of the same indices.
    """
    index_of: dict[str, int] = {}
    for (indices, _), (first, _) in zip(from_workers, from_process, strict=False):
        for index, text in zip(indices, first, strict=False):
            index_of.setdefault(text, index)
    compared = unstable = wrong = swapped = 0
    difference, swap, error = "", "", ""
    for (indices, worker_texts), (first, second) in zip(from_workers, from_process, strict=False):
        for index, worker_text, own_text, own_text_again in zip(indices, worker_texts, first, second, strict=False):
            if own_text != own_text_again:
                unstable += 1
                continue
            compared += 1
            if own_text == worker_text or own_text.startswith(FAILED):
                continue  # a sample that the process cannot read is not the workers' fault
            if worker_text.startswith(FAILED):
                error = error or f"{worker_text.removeprefix(FAILED)}, {READING} {index}"
                continue
            wrong += 1
            difference = difference or f"sample {index} differs"
            if worker_text in index_of:
                swapped += 1
                swap = swap or f"sample {index} has the content of sample {index_of[worker_text]}"
    return Compared(compared, unstable, wrong, swapped, swap or difference, "raise" if error else "", error)
