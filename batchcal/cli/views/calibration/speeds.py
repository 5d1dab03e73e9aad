"""Speed of the training: the plan with its gain, the sizes under each allocator policy, the race of threads and workers."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchcal.calibration.records.rehearsal import Attribution, Finalist, Finals, SizeRace, TurnedBack
from batchcal.calibration.records.speed import Speeds
from batchcal.calibration.schema import Calibration
from batchcal.cli.views.words import count
from batchcal.core.units import count_of, format_bytes
from batchcal.plan.division.last_group import last_group_fails
from batchcal.plan.effective_batch import unset_remark
from batchcal.plan.make import plan_to_show
from batchcal.plan.plan import Plan
from batchcal.workload.data.in_flight import PREFETCH_FACTOR

KNOBS = {
    "allocator": "allocator",
    "micro_batch": "micro-batch",
    "num_workers": "workers",
    "intra_op_threads": "threads",
    "activation_checkpointing": "checkpointing",
}
"""Displayed names of the knobs of a plan."""


def chosen(calibration: Calibration) -> Iterator[RenderableType]:
    """Yield the default plan of the calibration, and its gain, knob by knob."""
    plan, refused = plan_to_show(calibration)
    grid = Table.grid(padding=(0, 2), pad_edge=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("plan", Text(settings_line(plan), style="bold green" if plan.status == "verified" else "bold"))
    grid.add_row("", Text(promise_line(plan, told_of(calibration, plan))))
    if unset := unset_remark(calibration):
        grid.add_row("", Text(unset, style="yellow"))
    yield grid
    if refused:
        yield Text(f"this plan is for the largest undivided batch: {refused}", style="yellow", overflow="fold")
    if plan.last_group_error:
        yield Text(last_group_fails(plan.last_group, plan.last_group_error), style="yellow", overflow="fold")
    told = told_of(calibration, plan)
    if told is not None and told.knobs:
        yield Text("")
        yield attribution(told)
        traded = checkpointing_line(told)
        if traded:
            yield Text(traded, style="dim", overflow="fold")


def told_of(calibration: Calibration, plan: Plan) -> Attribution | None:
    """Return the measured gain of `plan`. None: measured for another effective batch, or not at all."""
    told = calibration.attribution
    return told if told is not None and told.effective_batch == plan.effective_batch else None


def settings_line(plan: Plan) -> str:
    """Return `22 x 32 for 687, eval 359, 2 threads, no workers, allocator tcmalloc`."""
    parts = (
        f"{plan.accumulation_steps} x {count(plan.micro_batch)} for {count(plan.effective_batch)}"
        if plan.accumulation_steps > 1
        else count(plan.micro_batch)
    )
    workers = count_of(plan.num_workers, "worker") if plan.num_workers else "no workers"
    threads = count_of(plan.intra_op_threads, "thread")
    return f"{parts}, eval {count(plan.eval_batch)}, {threads}, {workers}, allocator {plan.allocator}"


def promise_line(plan: Plan, told: Attribution | None) -> str:
    """Return `verified: 1,021 samples/s, 379 MiB of 870 MiB; 3.0x PyTorch's defaults`."""
    rate = "" if plan.predicted_samples_per_s is None else f" {count(plan.predicted_samples_per_s)} samples/s,"
    text = f"{plan.status}:{rate} {format_bytes(plan.predicted_peak_bytes)} of {format_bytes(plan.budget_bytes)}"
    if told is None or told.gain is None:
        return text
    return f"{text}; {told.gain:.1f}x PyTorch's defaults" if told.knobs else f"{text}; PyTorch's defaults are as fast"


def attribution(told: Attribution) -> Table:
    """Return the loss of speed with one knob at PyTorch's default, and with all of them."""
    table = _table("turned back", "to", "samples/s", "gain")
    for knob in told.knobs:
        table.add_row(*attribution_row(told, knob))
    if len(told.knobs) > 1:
        table.add_row(*all_of_them(told))
    return table


def attribution_row(told: Attribution, knob: TurnedBack) -> tuple[str, str, str, str]:
    """Return the chosen value of the knob, its default, the rate with the default, and the gain of the chosen value."""
    gain = None if knob.samples_per_s is None else told.samples_per_s / knob.samples_per_s
    return f"{KNOBS[knob.knob]} {_number(knob.chosen)}", _number(knob.usual), *_rate_and_gain(knob.samples_per_s, gain, knob.why)


def all_of_them(told: Attribution) -> tuple[str, str, str, str]:
    """Return the same row for all knobs at once."""
    return "all of them", "PyTorch's defaults", *_rate_and_gain(told.usual_samples_per_s, told.gain, told.why)


def checkpointing_line(told: Attribution) -> str:
    """Return `activation checkpointing: 312 MiB at the peak, 540 MiB without: 42% less for 17% more time`. Empty: it is off."""
    back = next((knob for knob in told.knobs if knob.knob == "activation_checkpointing"), None)
    if back is None:
        return ""
    if told.peak_bytes is None or back.peak_bytes is None or back.samples_per_s is None:
        return f"activation checkpointing: without it, {back.why or 'nothing could be told'}"
    saved, paid = 1 - told.peak_bytes / back.peak_bytes, back.samples_per_s / told.samples_per_s - 1
    return (
        f"activation checkpointing: {format_bytes(told.peak_bytes)} at the peak, {format_bytes(back.peak_bytes)} without: "
        f"{abs(saved):.0%} {'less' if saved >= 0 else 'more'} for {abs(paid):.0%} {'more' if paid >= 0 else 'less'} time"
    )


def details(calibration: Calibration) -> Iterator[RenderableType]:
    """Yield the measurements on the chosen device: the sizes under each policy, the policies, the threads and workers."""
    raced = [one for one in calibration.speeds if one.device == calibration.chosen_device]
    if raced:
        yield Text("")
        yield from sizes(calibration, raced)
    finding = calibration.finding()
    finals = None if finding is None else calibration.finals_of(finding)
    if finals is not None:
        yield Text("")
        yield threads_and_workers(finals)
    race = None if finding is None else calibration.sizes_of(finding)
    if race is not None:
        yield Text("")
        yield raced_sizes(race)


def sizes(calibration: Calibration, raced: list[Speeds]) -> Iterator[RenderableType]:
    """Yield samples/s by micro-batch and policy, with one micro-batch per optimizer step."""
    raced = sorted(raced, key=lambda one: -_best(one))
    table = _table("micro-batch", *(one.allocator for one in raced))
    for size in sorted({time.micro_batch for one in raced for time in one.times}):
        rates = [next((time.samples_per_s(size) for time in one.times if time.micro_batch == size), None) for one in raced]
        cells = [_rate(rate, one, calibration) for rate, one in zip(rates, raced, strict=True)]
        table.add_row(count(size), *cells)
    yield table
    for one in raced:
        told = [one.why] if one.why else []
        if one.spread is not None and not one.why:
            told.append(f"{count_of(one.rounds, 'round')}, within {one.spread:.0%}")
        if one.disturbed:
            told.append(f"others were in the way {count_of(one.disturbed, 'time')}")
        if told:
            yield Text(f"  {one.allocator}: {', '.join(told)}", style="dim", overflow="fold")


def raced_sizes(race: SizeRace) -> Table:
    """Return the race of micro-batches, measured as complete optimizer steps of one effective batch."""
    table = _table(f"micro-batch for {count(race.effective_batch)}", "samples/s", "rounds")
    table.add_column("", style="dim", overflow="fold")
    fastest = race.fastest(race.effective_batch)
    for one in race.sizes:
        style = "bold green" if one.micro_batch == fastest else ""
        remark = one.why if one.micro_batch != fastest else "chosen" if race.settled else "chosen, not settled"
        rate = "-" if one.samples_per_s is None else count(one.samples_per_s)
        table.add_row(Text(count(one.micro_batch), style=style), Text(rate, style=style), str(one.rounds), remark)
    return table


def threads_and_workers(finals: Finals) -> Table:
    """Return the candidates that ran in the race, and the bounds of the others by conservation of work."""
    table = _table("threads", "workers", "samples/s", "at most")
    table.add_column("", style="dim", overflow="fold")
    for one in finals.finalists:
        style = "bold green" if one is finals.winner else ""
        *numbers, bound, remark = finalist_row(one, finals)
        table.add_row(*(Text(number, style=style) for number in numbers), bound, remark)
    return table


def finalist_row(one: Finalist, finals: Finals) -> tuple[str, str, str, str, str]:
    """Return threads, workers, samples/s, the bound by conservation of work, and the outcome."""
    rate = "" if one.samples_per_s is None else count(one.samples_per_s)
    return str(one.intra_op_threads), _workers(one), rate, count(one.bound_samples_per_s), _remark(one, finals)


def _workers(one: Finalist) -> str:
    """Return `2`, and the settings of the workers that are not the defaults."""
    ahead = f", {one.prefetch_factor} ahead" if one.prefetch_factor not in (None, PREFETCH_FACTOR) else ""
    return f"{one.num_workers}{ahead}" + (f", {one.multiprocessing_context}" if one.multiprocessing_context else "")


def _remark(one: Finalist, finals: Finals) -> str:
    if one is finals.winner:
        return "chosen" if finals.settled else "chosen, not settled"
    return one.why or {"no-time": "no time was left"}.get(one.left, "")


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    table.add_column(columns[0], justify="left" if columns[0] == "turned back" else "right", no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="left" if name == "to" else "right", no_wrap=True)
    return table


def _rate_and_gain(rate: float | None, gain: float | None, why: str) -> tuple[str, str]:
    if rate is None:
        return "-", why or "not run"
    return count(rate), "" if gain is None else f"{gain:.2f}x"


def _number(text: str) -> str:
    return count(int(text)) if text.isdigit() else text


def _rate(rate: float | None, speeds: Speeds, calibration: Calibration) -> Text:
    """Return the rate, with a star at the size that plans for throughput use."""
    if rate is None:
        return Text("")
    taken = rate == _best(speeds) and speeds.allocator == calibration.policy
    return Text(f"*{count(rate)}", style="bold green") if taken else Text(count(rate))


def _best(speeds: Speeds) -> float:
    return max((time.samples_per_s(time.micro_batch) for time in speeds.times), default=0.0)
