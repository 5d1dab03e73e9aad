"""Speed of the training: the plan with its gain, the sizes under each allocator policy, the race of threads and workers."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchcal.calibration.records.rehearsal import Attribution, Finalist, Finals, SizeRace, TurnedBack
from batchcal.calibration.records.speed import TURNS_DIFFER, Speeds
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
CHOSEN_UNSETTLED = "chosen; the race ended before the result was certain"
ATTRIBUTION_HEADS = ("setting", "PyTorch's default", "its samples/s", "gain")


def plan_and_gain(calibration: Calibration) -> Iterator[RenderableType]:
    """Yield the default plan of the calibration, and its gain, knob by knob."""
    plan, refused = plan_to_show(calibration)
    attribution = attribution_of(calibration, plan)
    grid = Table.grid(padding=(0, 2), pad_edge=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("plan", Text(settings_line(plan), style="bold green" if plan.status == "verified" else "bold"))
    grid.add_row("", Text(promise_line(plan, attribution)))
    if unset := unset_remark(calibration):
        grid.add_row("", Text(unset, style="yellow"))
    yield grid
    if refused:
        yield Text(f"this plan is for the largest undivided batch: {refused}", style="yellow", overflow="fold")
    if plan.last_group_error:
        yield Text(last_group_fails(plan.last_group, plan.last_group_error), style="yellow", overflow="fold")
    if attribution is not None and attribution.knobs and attribution.is_by_knob:
        yield Text("")
        yield attribution_table(attribution)
        checkpointing = checkpointing_line(attribution)
        if checkpointing:
            yield Text(checkpointing, style="dim", overflow="fold")


def attribution_of(calibration: Calibration, plan: Plan) -> Attribution | None:
    """Return the measured gain of `plan`. None: measured for another effective batch, or not at all."""
    attribution = calibration.attribution
    return attribution if attribution is not None and attribution.effective_batch == plan.effective_batch else None


def settings_line(plan: Plan) -> str:
    """Return `22 x 32 for 687, eval 359, 2 threads, no workers, allocator tcmalloc`."""
    batch = (
        f"{plan.accumulation_steps} x {count(plan.micro_batch)} for {count(plan.effective_batch)}"
        if plan.accumulation_steps > 1
        else count(plan.micro_batch)
    )
    workers = count_of(plan.num_workers, "worker") if plan.num_workers else "no workers"
    threads = count_of(plan.intra_op_threads, "thread")
    return f"{batch}, eval {count(plan.eval_batch)}, {threads}, {workers}, allocator {plan.allocator}"


def promise_line(plan: Plan, attribution: Attribution | None) -> str:
    """Return `verified: 1,021 samples/s, peak 379 MiB of a budget of 870 MiB; 3.0 times as fast as PyTorch's defaults`."""
    rate = "" if plan.predicted_samples_per_s is None else f" {count(plan.predicted_samples_per_s)} samples/s,"
    peak, budget = format_bytes(plan.predicted_peak_bytes), format_bytes(plan.budget_bytes)
    text = f"{plan.status}:{rate} peak {peak} of a budget of {budget}"
    if attribution is None or attribution.gain is None:
        return text
    if not attribution.knobs:
        return f"{text}; as fast as PyTorch's defaults"
    if attribution.rounds > 1:
        return f"{text}; {attribution.gain:.1f} times as fast as PyTorch's defaults"
    # One turn of each: a difference that turns of one setting have, too, is no gain.
    about = f"{attribution.gain:.1f} times as fast as" if abs(attribution.gain - 1) > TURNS_DIFFER else "as fast as"
    return f"{text}; about {about} PyTorch's defaults"


def attribution_table(attribution: Attribution) -> Table:
    """Return the loss of speed with one knob at PyTorch's default, and with all of them."""
    table = _table(*ATTRIBUTION_HEADS)
    for knob in attribution.knobs:
        table.add_row(*attribution_row(attribution, knob))
    if len(attribution.knobs) > 1:
        table.add_row(*all_defaults_row(attribution))
    return table


def attribution_row(attribution: Attribution, knob: TurnedBack) -> tuple[str, str, str, str]:
    """Return the chosen value of the knob, its default, the rate with the default, and the gain of the chosen value."""
    gain = None if knob.samples_per_s is None else attribution.samples_per_s / knob.samples_per_s
    return f"{KNOBS[knob.knob]} {_number(knob.chosen)}", _number(knob.usual), *_rate_and_gain(knob.samples_per_s, gain, knob.why)


def all_defaults_row(attribution: Attribution) -> tuple[str, str, str, str]:
    """Return the same row for all knobs at once."""
    rate_and_gain = _rate_and_gain(attribution.usual_samples_per_s, attribution.gain, attribution.why)
    return "all settings", "all defaults", *rate_and_gain


def checkpointing_line(attribution: Attribution) -> str:
    """Return `activation checkpointing: 312 MiB at the peak, 540 MiB without: 42% less for 17% more time`. Empty: it is off."""
    off = next((knob for knob in attribution.knobs if knob.knob == "activation_checkpointing"), None)
    if off is None:
        return ""
    if attribution.peak_bytes is None or off.peak_bytes is None or off.samples_per_s is None:
        return f"activation checkpointing: without it, {off.why or 'the result is unknown'}"
    saved, paid = 1 - attribution.peak_bytes / off.peak_bytes, off.samples_per_s / attribution.samples_per_s - 1
    return (
        f"activation checkpointing: {format_bytes(attribution.peak_bytes)} at the peak, {format_bytes(off.peak_bytes)} without: "
        f"{abs(saved):.0%} {'less' if saved >= 0 else 'more'} for {abs(paid):.0%} {'more' if paid >= 0 else 'less'} time"
    )


def details(calibration: Calibration) -> Iterator[RenderableType]:
    """Yield the measurements on the chosen device: the sizes under each policy, the policies, the threads and workers."""
    policies = [speeds for speeds in calibration.speeds if speeds.device == calibration.chosen_device]
    if policies:
        yield Text("")
        yield from sizes(calibration, policies)
    finding = calibration.finding()
    finals = None if finding is None else calibration.finals_of(finding)
    if finals is not None:
        yield Text("")
        yield threads_and_workers(finals)
    race = None if finding is None else calibration.sizes_of(finding)
    if race is not None:
        yield Text("")
        yield raced_sizes(race)


def sizes(calibration: Calibration, policies: list[Speeds]) -> Iterator[RenderableType]:
    """Yield samples/s by micro-batch and policy, with one micro-batch per optimizer step."""
    policies = sorted(policies, key=lambda speeds: -_best(speeds))
    table = _table("micro-batch", *(speeds.allocator for speeds in policies))
    for size in sorted({time.micro_batch for speeds in policies for time in speeds.times}):
        rates = [
            next((time.samples_per_s(size) for time in speeds.times if time.micro_batch == size), None) for speeds in policies
        ]
        cells = [_rate(rate, speeds, calibration) for rate, speeds in zip(rates, policies, strict=True)]
        table.add_row(count(size), *cells)
    yield table
    for speeds in policies:
        remarks = [speeds.why] if speeds.why else []
        if speeds.spread is not None and not speeds.why:
            remarks.append(f"{count_of(speeds.rounds, 'round')}, the two best differ by {speeds.spread:.0%}")
        if speeds.disturbed:
            remarks.append(f"{count_of(speeds.disturbed, 'timing')} disturbed by other processes")
        if remarks:
            yield Text(f"  {speeds.allocator}: {', '.join(remarks)}", style="dim", overflow="fold")


def raced_sizes(race: SizeRace) -> Table:
    """Return the race of micro-batches, measured as complete optimizer steps of one effective batch."""
    table = _table(f"micro-batch for {count(race.effective_batch)}", "samples/s", "rounds")
    table.add_column("", style="dim", overflow="fold")
    fastest = race.fastest(race.effective_batch)
    for size in race.sizes:
        style = "bold green" if size.micro_batch == fastest else ""
        remark = size.why if size.micro_batch != fastest else "chosen" if race.settled else CHOSEN_UNSETTLED
        rate = "-" if size.samples_per_s is None else count(size.samples_per_s)
        table.add_row(Text(count(size.micro_batch), style=style), Text(rate, style=style), str(size.rounds), remark)
    return table


def threads_and_workers(finals: Finals) -> Table:
    """Return the candidates that ran in the race, and the bounds of the others by conservation of work."""
    table = _table("threads", "workers", "samples/s", "upper bound")
    table.add_column("", style="dim", overflow="fold")
    for finalist in finals.finalists:
        style = "bold green" if finalist is finals.winner else ""
        *numbers, bound, remark = finalist_row(finalist, finals)
        table.add_row(*(Text(number, style=style) for number in numbers), bound, remark)
    return table


def finalist_row(finalist: Finalist, finals: Finals) -> tuple[str, str, str, str, str]:
    """Return threads, workers, samples/s, the bound by conservation of work, and the outcome."""
    rate = "" if finalist.samples_per_s is None else count(finalist.samples_per_s)
    bound = count(finalist.bound_samples_per_s)
    return str(finalist.intra_op_threads), _workers(finalist), rate, bound, _remark(finalist, finals)


def _workers(finalist: Finalist) -> str:
    """Return `2`, and the settings of the workers that are not the defaults."""
    prefetch = f", prefetch {finalist.prefetch_factor}" if finalist.prefetch_factor not in (None, PREFETCH_FACTOR) else ""
    context = f", {finalist.multiprocessing_context}" if finalist.multiprocessing_context else ""
    return f"{finalist.num_workers}{prefetch}{context}"


def _remark(finalist: Finalist, finals: Finals) -> str:
    if finalist is finals.winner:
        return "chosen" if finals.settled else CHOSEN_UNSETTLED
    return finalist.why or {"no-time": "not run: no time was left"}.get(finalist.left, "")


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    for name in columns:
        table.add_column(name, justify="left" if name in ATTRIBUTION_HEADS[:2] else "right", no_wrap=True)
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
    is_chosen = rate == _best(speeds) and speeds.allocator == calibration.policy
    return Text(f"*{count(rate)}", style="bold green") if is_chosen else Text(count(rate))


def _best(speeds: Speeds) -> float:
    return max((time.samples_per_s(time.micro_batch) for time in speeds.times), default=0.0)
