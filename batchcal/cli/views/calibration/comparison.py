"""Two calibrations side by side: what changed, and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchcal.calibration.schema import Calibration
from batchcal.cli.views.words import count
from batchcal.core.units import format_bytes
from batchcal.core.values import Frozen
from batchcal.plan.make import plan_to_show
from batchcal.plan.plan import Plan

ALIKE = 0.03
"""Relative difference of two rates up to which a race cannot distinguish them."""


class Row(Frozen):
    """One fact that both calibrations contain, or one of them."""

    name: str
    kind: Literal["text", "bytes", "count", "rate"]
    first: str | float | None
    second: str | float | None

    @property
    def ratio(self) -> float | None:
        """Second value divided by the first. None: the values are not numbers, or one is missing."""
        if isinstance(self.first, str) or isinstance(self.second, str) or not self.first or self.second is None:
            return None
        return self.second / self.first

    @property
    def changed(self) -> bool:
        """True if the values differ. Rates must differ by more than a race can distinguish."""
        if self.kind == "rate" and self.ratio is not None:
            return abs(self.ratio - 1) > ALIKE
        return self.first != self.second


def compare(first: Calibration, second: Calibration) -> tuple[Row, ...]:
    """Compare machine and software, options, findings, and the plan, in this order."""
    before, after = (dict(_facts(calibration)) for calibration in (first, second))
    names = [*before, *(name for name in after if name not in before)]
    return tuple(
        Row(
            name=name,
            kind=(before.get(name) or after[name])[0],
            first=before[name][1] if name in before else None,
            second=after[name][1] if name in after else None,
        )
        for name in names
    )


def show(rows: tuple[Row, ...], names: tuple[str, str]) -> Iterator[RenderableType]:
    """Yield the changes with their ratios, then the names of unchanged facts."""
    changed = [row for row in rows if row.changed]
    if not changed:
        yield Text("no change that affects the plan", style="green")
        return
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    for row in changed:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        tone = "" if row.ratio is None or row.kind != "rate" else "green" if row.ratio > 1 else "red"
        table.add_row(row.name, _text(row.kind, row.first), _text(row.kind, row.second), Text(ratio, style=tone))
    yield table
    same = [row.name for row in rows if not row.changed]
    if same:
        yield Text("")
        yield Text(f"  unchanged: {', '.join(same)}", style="dim", overflow="fold")


_Fact = tuple[Literal["text", "bytes", "count", "rate"], str | float | None]


def _facts(calibration: Calibration) -> Iterator[tuple[str, _Fact]]:
    environment, software = calibration.environment, calibration.environment.software
    yield "task", ("text", calibration.task.spec)
    yield "task sources", ("text", calibration.task.digest[:12])
    yield "processor", ("text", environment.cpu.model or environment.cpu.architecture)
    yield "cores", ("count", environment.cpu.cores.value)
    yield "memory limit", ("bytes", environment.memory.limit.value)
    for accelerator in environment.accelerators:
        yield f"{accelerator.kind}:{accelerator.index}", ("text", accelerator.name)
    yield "system", ("text", software.os)
    yield "python", ("text", software.python)
    yield "torch", ("text", software.torch)
    options = calibration.options
    yield "margin", ("text", f"{options.margin:.0%}")
    yield "steps a probe", ("count", options.samples)
    yield "status", ("text", calibration.status)
    finding = calibration.finding()
    if finding is None:
        return
    yield "device", ("text", finding.device)
    yield "allocator", ("text", finding.allocator)
    budget = calibration.budget(finding.device)
    if budget is not None:
        yield "budget", ("bytes", budget.budget_bytes)
    yield "at rest", ("bytes", round(finding.train_memory.base_bytes))
    yield "train capacity", ("count", finding.train.batch)
    yield "train capacity limited by", ("text", finding.train.limited_by)
    if finding.eval is not None:
        yield "eval capacity", ("count", finding.eval.batch)
    plan, _ = plan_to_show(calibration)
    yield from _plan_facts(plan)
    if calibration.attribution is not None and calibration.attribution.gain is not None:
        yield "gain over PyTorch's defaults", ("text", f"{calibration.attribution.gain:.1f}x")


def _plan_facts(plan: Plan) -> Iterator[tuple[str, _Fact]]:
    yield "plan", ("text", plan.status)
    yield "effective batch", ("count", plan.effective_batch)
    yield "micro-batch", ("count", plan.micro_batch)
    yield "threads", ("count", plan.intra_op_threads)
    yield "workers", ("count", plan.num_workers)
    yield "peak of the plan", ("bytes", plan.predicted_peak_bytes)
    yield "samples/s", ("rate", plan.predicted_samples_per_s)


def _text(kind: str, value: str | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return format_bytes(value) if kind == "bytes" else f"{value:g}" if value < 100 else count(value)
