"""Rule of the batch sizes that a task accepts, if it does not accept all of them."""

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
    """Largest size below a refused size that is known to run. None: no size was too large for the user's code."""
    one_size: bool = False
    """True: all batches of a process have the same size, because the task keeps the size of the previous step."""
    assumed: bool = False
    """True: the time or the probes ran out before it was certain. The task accepts sizes of this rule and may accept others."""
    refused: Size | None = None
    """A size that the user's code refused."""
    error: str = ""
    """First line of the error that it raised for this size."""

    @property
    def fixed(self) -> int | None:
        """The only size that the task accepts. None: it accepts several."""
        return self.least if self.most == self.least else None

    @property
    def restricts(self) -> bool:
        """True if batchcal must choose sizes by it. An upper bound alone does not count: the capacity respects it anyway."""
        return self.multiple_of > 1 or self.least > 1 or self.one_size

    @property
    def smallest(self) -> int:
        """Smallest size of two samples or more that the task accepts: BatchNorm refuses one sample."""
        return -(-max(2, self.least) // self.multiple_of) * self.multiple_of

    def admits(self, size: int) -> bool:
        """Return True if the task accepts a batch of `size`."""
        return size >= self.least and size % self.multiple_of == 0 and (self.most is None or size <= self.most)

    def at_most(self, size: int) -> int:
        """Return the largest size up to `size` that the task accepts. 0: none."""
        size = size if self.most is None else min(size, self.most)
        size -= size % self.multiple_of
        return size if size >= self.least else 0

    def half(self, samples: int) -> int:
        """Return the larger half of a batch that is divided in two. 0: the task does not accept both parts."""
        larger = -(-(samples - samples // 2) // self.multiple_of) * self.multiple_of
        return 0 if self.one_size or not self.admits(larger) or not self.admits(samples - larger) else larger

    @property
    def text(self) -> str:
        """Text that follows "the task", such as `accepts only even batches`."""
        if self.fixed is not None:
            return f"accepts only batches of {self.fixed}"
        parts = []
        if self.multiple_of > 1:
            only = "even batches" if self.multiple_of == 2 else f"batches that are multiples of {self.multiple_of}"
            parts.append(f"accepts only {only}")
        if self.least > max(1, self.multiple_of):
            parts.append(f"accepts only batches of {self.least} or more")
        if self.most is not None:
            parts.append(f"accepts at most {self.most} samples in a batch")
        if self.one_size:
            parts.append("accepts only one batch size per process")
        return " and ".join(parts) or "accepts every batch size"

    @property
    def sentence(self) -> str:
        """The rule with its evidence, for a note."""
        evidence = f": it refused {self.refused} ({self.error})" if self.refused is not None else ""
        flags = f"; to set this size, use --multiple-of {self.fixed} --max-batch {self.fixed}" if self.fixed is not None else ""
        doubt = " (time ran out before all sizes were tried)" if self.assumed else ""
        return f"the task {self.text}{doubt}{evidence}{flags}"
