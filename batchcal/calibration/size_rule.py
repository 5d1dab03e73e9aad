"""Which batch sizes a task takes, where it does not take all of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.core.values import Record

Size = Annotated[int, Field(ge=1, le=2**31)]


class SizeRule(Record):
    """The sizes that ran and the sizes that the user's code refused follow this rule."""

    multiple_of: Size = 1
    least: Size = 1
    most: Size | None = None
    """The largest size that is known to run below a refused size. None: no size was too large for the user's code."""
    one_size: bool = False
    """True: all batches of a process have the same size, since the task keeps the size of the step before."""
    assumed: bool = False
    """True: time or probes ended before it was certain. The task takes sizes of this rule, and may take others."""
    refused: Size | None = None
    """A size that the user's code refused."""
    error: str = ""
    """The error that it raised there, first line."""

    @property
    def fixed(self) -> int | None:
        """The only size that the task takes; None: it takes several."""
        return self.least if self.most == self.least else None

    @property
    def restricts(self) -> bool:
        """Whether batchcal must choose sizes by it: more than an upper bound, which the capacity keeps anyway."""
        return self.multiple_of > 1 or self.least > 1 or self.one_size

    @property
    def smallest(self) -> int:
        """The smallest size of two samples or more that the task takes: BatchNorm refuses one sample."""
        return -(-max(2, self.least) // self.multiple_of) * self.multiple_of

    def admits(self, size: int) -> bool:
        """Whether the task takes a batch of `size`."""
        return size >= self.least and size % self.multiple_of == 0 and (self.most is None or size <= self.most)

    def at_most(self, size: int) -> int:
        """The largest size up to `size` that the task takes; 0: none."""
        size = size if self.most is None else min(size, self.most)
        size -= size % self.multiple_of
        return size if size >= self.least else 0

    def half(self, samples: int) -> int:
        """The larger half of a batch that is divided in two; 0: the task does not take both parts."""
        larger = -(-(samples - samples // 2) // self.multiple_of) * self.multiple_of
        return 0 if self.one_size or not self.admits(larger) or not self.admits(samples - larger) else larger

    @property
    def text(self) -> str:
        """`takes only even batches`: what follows "the task"."""
        if self.fixed is not None:
            return f"takes only batches of {self.fixed}"
        parts = []
        if self.multiple_of > 1:
            only = "even batches" if self.multiple_of == 2 else f"batches that are multiples of {self.multiple_of}"
            parts.append(f"takes only {only}")
        if self.least > max(1, self.multiple_of):
            parts.append(f"takes only batches of {self.least} or more")
        if self.most is not None:
            parts.append(f"takes at most {self.most} samples in a batch")
        if self.one_size:
            parts.append("takes batches of one size only in a process")
        return " and ".join(parts) or "takes every batch size"

    @property
    def sentence(self) -> str:
        """The rule with its evidence, for a note."""
        evidence = f": it refused {self.refused} ({self.error})" if self.refused is not None else ""
        flags = f"; --multiple-of {self.fixed} --max-batch {self.fixed} sets this" if self.fixed is not None else ""
        doubt = ", as far as there was time to try" if self.assumed else ""
        return f"the task {self.text}{doubt}{evidence}{flags}"
