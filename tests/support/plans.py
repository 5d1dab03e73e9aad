"""A plan for tests of what puts plans into force, its sizes given directly."""

from __future__ import annotations

from batchcal.plan.plan import Plan


def a_plan(*micro_batches: int, **overrides: object) -> Plan:
    """A plan with these micro-batches: `a_plan(25, 25, 25, 25)`. `overrides` replace whole fields."""
    sizes = micro_batches or (8,)
    values: dict[str, object] = {
        "status": "verified",
        "micro_batch": max(sizes),
        "accumulation_steps": len(sizes),
        "effective_batch": sum(sizes),
        "micro_batches": sizes,
        "eval_batch": 16,
        "num_workers": 0,
        "prefetch_factor": None,
        "pin_memory": False,
        "persistent_workers": False,
        "multiprocessing_context": None,
        "intra_op_threads": 1,
        "interop_threads": 1,
        "allocator": "default",
        "predicted_peak_bytes": 300_000_000,
        "budget_bytes": 800_000_000,
        "predicted_samples_per_s": None,
        "world_size": 1,
        "objective": "memory",
        "limited_by": "memory",
        "device": "cpu",
        "why": {},
    }
    return Plan.model_validate(values | overrides)
