"""Values of a plan for the placeholders of a command."""

from __future__ import annotations

from batchcal.plan.plan import Plan
from batchcal.workload.command.template import ACCUMULATION_STEPS, BATCH_SIZE, EFFECTIVE_BATCH


def values_of(plan: Plan) -> dict[str, str]:
    """Return the text for each placeholder but `{scratch}`, which is not a part of a plan."""
    return {
        BATCH_SIZE: str(plan.micro_batch),
        "eval_batch_size": str(plan.eval_batch),
        ACCUMULATION_STEPS: str(plan.accumulation_steps),
        EFFECTIVE_BATCH: str(plan.effective_batch),
        "num_workers": str(plan.num_workers),
        "threads": str(plan.intra_op_threads),
    }
