"""Events of a running calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchcal.core.progress import Event, Fields, Note, Output


@dataclass(frozen=True, kw_only=True)
class CalibrateStarted(Event):
    """A calibration begins on a device."""

    event_name = "calibrate_started"
    task: str
    device: str
    allocator: str
    limit_bytes: int
    others_bytes: int
    budget_bytes: int
    time_limit_s: float


@dataclass(frozen=True, kw_only=True)
class PhaseBegan(Event):
    """A phase begins."""

    event_name = "phase"
    phase: str
    device: str | None = None
    allocator: str | None = None
    mode: str | None = None
    why: str


@dataclass(frozen=True, kw_only=True)
class ProbeStarted(Event):
    event_name = "probe_started"
    sequence: int
    phase: str
    mode: str
    batch: int
    predicted_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class _Probed(Event):
    sequence: int
    phase: str
    mode: str
    device: str
    allocator: str
    batch: int
    outcome: str
    """`kind` of the outcome."""
    detail: str | None
    peak_bytes: int | None
    predicted_bytes: int | None
    budget_bytes: int
    samples_per_s: float | None
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class ProbeEnded(_Probed):
    event_name = "probe_ended"


@dataclass(frozen=True, kw_only=True)
class ProbeKept(_Probed):
    """A probe of an interrupted calibration, or of a search with a larger budget, that is used again."""

    event_name = "probe_kept"


@dataclass(frozen=True, kw_only=True)
class BestFound(Event):
    """A new largest micro-batch within the budget."""

    event_name = "best"
    mode: str
    batch: int
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class TurnEnded(Event):
    """A turn of an allocator policy in the race of policies has ended."""

    event_name = "lap_ended"
    allocator: str
    micro_batch: int
    samples_per_s: float
    ended: str | None
    """Reason why the policy left the race. None: it is still in the race."""


@dataclass(frozen=True, kw_only=True)
class RaceKept(Event):
    """The result of a race of policies of an interrupted calibration is used again."""

    event_name = "race_kept"
    device: str
    allocator: str


@dataclass(frozen=True, kw_only=True)
class SizeEnded(Event):
    """Result of a micro-batch in the race of micro-batches."""

    event_name = "size_ended"
    micro_batch: int
    samples_per_s: float | None
    ended: str | None


@dataclass(frozen=True, kw_only=True)
class FinalistEnded(Event):
    """Result of a candidate in the race of threads and workers."""

    event_name = "finalist_ended"
    intra_op_threads: int
    num_workers: int
    samples_per_s: float
    ended: str | None


@dataclass(frozen=True, kw_only=True)
class Rehearsed(Event):
    """Result of the rehearsal of a plan."""

    event_name = "rehearsed"
    effective_batch: int
    micro_batch: int
    outcome: str
    detail: str | None
    peak_bytes: int | None
    budget_bytes: int
    samples_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class Attributed(Event):
    """Comparison of the plan with PyTorch's defaults."""

    event_name = "attributed"
    gain: float | None
    samples_per_s: Mapping[str, float | None]
    """Speed of the plan with one knob at its default, by the name of the knob."""

    def fields(self) -> Fields:
        return {"gain": self.gain, **self.samples_per_s}


@dataclass(frozen=True, kw_only=True)
class ShapeTraced(Event):
    """The static memory of a shape of the model was traced."""

    event_name = "shape_traced"
    arguments: str
    parameters: int | None
    why: str | None
    """Reason for a failed trace. None: it succeeded."""


@dataclass(frozen=True, kw_only=True)
class CalibrateEnded(Event):
    event_name = "calibrate_ended"
    status: str
    device: str
    train_batch: int | None
    eval_batch: int | None
    limited_by: str | None
    probes: int
    wall_s: float


CalibrationEvent = (
    CalibrateStarted
    | PhaseBegan
    | ProbeStarted
    | ProbeEnded
    | ProbeKept
    | BestFound
    | TurnEnded
    | RaceKept
    | SizeEnded
    | FinalistEnded
    | Rehearsed
    | Attributed
    | ShapeTraced
    | CalibrateEnded
    | Note
    | Output
)
