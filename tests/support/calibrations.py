"""A whole calibration as a week-old container would hold it: handwriting in 1 GiB, two cores, no accelerator.

The numbers agree with one another: the budget is limit - others - margin, the memory model predicts the measured peaks,
the capacities were run by the measurements they name.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Final

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint
from batchcal.calibration.records.speed import StepTime
from batchcal.calibration.schema import (
    TIME_TO_LIVE,
    Budget,
    Calibration,
    Capacity,
    Finding,
    Fingerprint,
    Isolation,
    Measurement,
    Options,
)
from batchcal.core.units import GIB, MIB
from batchcal.detect.environment import Advice, Candidate, Cpu, Environment, Fact, Memory, SharedMemory, Software, ThreadPool
from batchcal.guard.outcome import Fits, OutOfMemory, Peak, Suspect
from batchcal.workload.facts import TaskFacts
from batchcal.workload.spec.identity import TaskIdentity

MADE_AT: Final = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
"""When `a_calibration()` was measured, so that a test can say `MADE_AT + timedelta(days=8)`."""

LIMIT_BYTES: Final = GIB
OTHERS_BYTES: Final = 31 * MIB
MARGIN_BYTES: Final = int(0.15 * LIMIT_BYTES)
BUDGET_BYTES: Final = LIMIT_BYTES - OTHERS_BYTES - MARGIN_BYTES
TRAIN_CAPACITY: Final = 512
EVAL_CAPACITY: Final = 360

_GROUP: Final = "/sys/fs/cgroup/memory/docker/4f1c"
_FENCED: Final = Isolation(launcher="zygote", fence=("prediction", "rlimit-data", "watchdog", "oom-score", "deadline"))


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def an_environment(**overrides: object) -> Environment:
    """A Docker container on cgroup v1 with 1 GiB and a quota of two of eight cores."""
    values: dict[str, object] = {
        "cpu": Cpu(
            cores=Fact[float](
                value=2.0,
                learned_from="/sys/fs/cgroup/cpu/docker/4f1c/cpu.cfs_quota_us",
                why="the quota is less than the 8 processors in the affinity mask",
                considered=(
                    Candidate(value=2.0, learned_from="/sys/fs/cgroup/cpu/docker/4f1c/cpu.cfs_quota_us"),
                    Candidate(value=8.0, learned_from="sched_getaffinity"),
                ),
            ),
            logical=8,
            visible=8,
            physical=4,
            quota_cores=2.0,
            model="Intel(R) Xeon(R) Processor @ 2.90GHz",
            architecture="x86_64",
        ),
        "memory": Memory(
            limit=Fact[int](
                value=LIMIT_BYTES,
                learned_from=f"{_GROUP}/memory.limit_in_bytes",
                why="the smallest limit on the way to the root",
                considered=(
                    Candidate(value=LIMIT_BYTES, learned_from=f"{_GROUP}/memory.limit_in_bytes"),
                    Candidate(value=24 * GIB, learned_from="/proc/meminfo MemTotal"),
                ),
            ),
            total_bytes=24 * GIB,
            available_bytes=20 * GIB,
            used_bytes=OTHERS_BYTES,
            reclaimable_bytes=12 * MIB,
            high_bytes=None,
            swap_total_bytes=0,
            swap_limit_bytes=None,
            rlimit_data_bytes=None,
            rlimit_as_bytes=None,
            oom_group=None,
            cgroup_version="v1",
            cgroup_path=_GROUP,
        ),
        "shared_memory": SharedMemory(path="/dev/shm", size_bytes=64 * MIB, free_bytes=64 * MIB),
        "open_files": Fact[int](value=1024, learned_from="RLIMIT_NOFILE"),
        "pids": None,
        "software": Software(
            os="Linux 6.18.44",
            libc="glibc 2.36",
            python="3.11.15",
            torch="2.13.0",
            cuda="",
            allocator_environment={},
            thread_environment={"OMP_NUM_THREADS": "2"},
        ),
        "thread_pools": (ThreadPool(library="libgomp", threads=2, version=""),),
        "advice": (
            Advice(
                code="shm-small",
                text="/dev/shm holds 64 MiB: DataLoader workers will run out of it",
                try_="docker run --shm-size=1g, or --workers 0",
            ),
        ),
        "optimal_threads": 2,
        "optimal_workers": 0,
    }
    return Environment.model_validate(values | overrides)


def options(**overrides: object) -> Options:
    """What the user asked for: nothing but the defaults on a CPU."""
    values: dict[str, object] = {
        "margin": 0.15,
        "headroom": 0.6,
        "memory_limit_bytes": None,
        "samples": 12,
        "max_batch": None,
        "multiple_of": 1,
        "device": "auto",
        "allocator": "default",
        "workers": None,
        "effective_batch": None,
        "seed": 0,
        "time_limit_s": 60.0,
        "max_probes": None,
    }
    return Options.model_validate(values | overrides)


def fingerprint(**overrides: object) -> Fingerprint:
    """The fingerprint of the calibration, so that a test can change one part of it."""
    values: dict[str, object] = {
        "cpu": sha256_of("cpu"),
        "os": sha256_of("os"),
        "python": sha256_of("python"),
        "torch": sha256_of("torch"),
        "accelerator": sha256_of("accelerator"),
        "task": sha256_of("task"),
        "options": sha256_of("options"),
        "memory_limit_bytes": LIMIT_BYTES,
    }
    return Fingerprint.model_validate(values | overrides)


def fits(mebibytes: int, samples_per_s: float, *, batch: int, steps: int = 3) -> Fits:
    """A run that held `mebibytes` at its peak."""
    demand = mebibytes * MIB
    peak = Peak(demand_bytes=demand, anonymous_bytes=demand, file_bytes=180 * MIB)
    return Fits(peak=peak, steps=steps, step_s=round(batch / samples_per_s, 4), samples_per_s=samples_per_s)


def step_time(micro_batch: int, step_s: float, **overrides: object) -> StepTime:
    """What one micro-batch took, with two threads, most of it computing."""
    values: dict[str, object] = {
        "micro_batch": micro_batch,
        "threads": 2,
        "step_s": step_s,
        "fetch_s": 0.0,
        "fetch_cpu_s": 0.0,
        "update_s": 1e-9,
        "steps": 2,
    }
    return StepTime.model_validate(values | overrides)


def measurement(**overrides: object) -> Measurement:
    """One probe of batch 8 that fits."""
    values: dict[str, object] = {
        "sequence": 1,
        "phase": "profile",
        "mode": "train",
        "device": "cpu",
        "allocator": "default",
        "batch": 8,
        "predicted_bytes": None,
        "allowed_bytes": BUDGET_BYTES,
        "outcome": fits(277, 640.0, batch=8),
        "isolation": _FENCED,
        "wall_s": 0.9,
        "why": "the smallest probe: shows that the task runs and what it takes before any batch",
    }
    return Measurement.model_validate(values | overrides)


def measurements() -> tuple[Measurement, ...]:
    """Six probes in the order they ran: two that aimed too high, the first of which died without saying why."""
    too_high = Peak(demand_bytes=852 * MIB, anonymous_bytes=852 * MIB)
    return (
        measurement(),
        measurement(
            sequence=2,
            phase="scale",
            batch=256,
            predicted_bytes=524 * MIB,
            outcome=fits(544, 1480.0, batch=256),
            wall_s=1.8,
            why="about half of the expected cap: measures base and ratio for this allocator",
        ),
        measurement(
            sequence=3,
            phase="verify",
            batch=544,
            predicted_bytes=835 * MIB,
            outcome=Suspect(detail="killed by SIGSEGV in oneDNN", near_limit=0.99),
            wall_s=1.4,
            why="the largest batch predicted to fit the budget",
        ),
        measurement(
            sequence=4,
            phase="verify",
            batch=544,
            predicted_bytes=835 * MIB,
            outcome=OutOfMemory(source="fence", detail="RuntimeError: DefaultCPUAllocator: can't allocate memory", peak=too_high),
            wall_s=1.5,
            attempt=2,
            why="the largest batch predicted to fit the budget, once more",
        ),
        measurement(
            sequence=5,
            phase="bisect",
            batch=512,
            predicted_bytes=821 * MIB,
            outcome=fits(822, 1530.0, batch=512),
            wall_s=2.4,
            why="between 256, which fits, and 544, which does not",
        ),
        measurement(
            sequence=6,
            phase="eval",
            mode="eval",
            batch=360,
            predicted_bytes=398 * MIB,
            outcome=fits(401, 6100.0, batch=360),
            wall_s=1.2,
            why="the whole evaluation set in one batch",
        ),
    )


def _train_memory() -> MemoryModel:
    return MemoryModel(
        base_bytes=268.0 * MIB,
        ratio=1.08,
        shape=(ShapePoint(batch=8, bytes=8.0 * MIB), ShapePoint(batch=1024, bytes=1024.0 * MIB)),
        source="fake-tensor",
        points=((8, 277 * MIB), (256, 544 * MIB), (512, 822 * MIB)),
        relative_error=0.0014,
        spread=0.06,
    )


def _eval_memory() -> MemoryModel:
    return MemoryModel(
        base_bytes=257.0 * MIB,
        ratio=1.0,
        shape=(ShapePoint(batch=8, bytes=3.2 * MIB), ShapePoint(batch=1024, bytes=409.6 * MIB)),
        source="fake-tensor",
        points=((360, 401 * MIB),),
        spread=0.06,
    )


def a_finding(**overrides: object) -> Finding:
    """What the six probes say about `cpu` under `default`."""
    values: dict[str, object] = {
        "device": "cpu",
        "allocator": "default",
        "train": Capacity(batch=TRAIN_CAPACITY, peak_bytes=822 * MIB, samples_per_s=1530.0, measured_by=5, limited_by="memory"),
        "eval": Capacity(batch=EVAL_CAPACITY, peak_bytes=401 * MIB, samples_per_s=6100.0, measured_by=6, limited_by="dataset"),
        "train_memory": _train_memory(),
        "eval_memory": _eval_memory(),
    }
    return Finding.model_validate(values | overrides)


def a_calibration(**overrides: object) -> Calibration:
    """The complete value; `overrides` replace whole fields: `a_calibration(status="partial", findings=())`."""
    sources = {"batchcal.workload.examples.handwriting": sha256_of("the source of handwriting")}
    values: dict[str, object] = {
        "batchcal": "0.1.0",
        "created_at": MADE_AT,
        "expires_at": MADE_AT + TIME_TO_LIVE,
        "status": "complete",
        "environment": an_environment(),
        "task": TaskIdentity(
            spec="batchcal.workload.examples.handwriting:task",
            arguments={"width": 32, "learning_rate": 0.001},
            sources=sources,
            digest=sha256_of("task"),
        ),
        "facts": TaskFacts(
            train_samples=1437,
            eval_samples=EVAL_CAPACITY,
            parameters=421_642,
            parameter_bytes=1_686_568,
            optimizer="AdamW",
            batch_bytes_per_sample=3144.0,
            worst_case="scan",
            dataset_pickle_bytes=412,
        ),
        "options": options(),
        "fingerprint": fingerprint(),
        "budgets": (
            Budget(
                device="cpu",
                limit_bytes=LIMIT_BYTES,
                others_bytes=OTHERS_BYTES,
                margin_bytes=MARGIN_BYTES,
                budget_bytes=BUDGET_BYTES,
                learned_from=f"{_GROUP}/memory.limit_in_bytes",
            ),
        ),
        "measurements": measurements(),
        "findings": (a_finding(),),
        "chosen_device": "cpu",
        "effective_batch": None,
        "wall_s": 9.6,
        "notes": ("glibc repeats its peak within 5-8 %",),
    }
    return Calibration.model_validate(values | overrides)
