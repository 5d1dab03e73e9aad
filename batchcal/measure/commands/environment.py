"""Environment of a measured command: the hook, the threads, the allocator, and loggers that upload nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import batchcal.workload.command
from batchcal.machine.allocator import AllocatorPolicy

HOOK: Final = str(Path(batchcal.workload.command.__file__).parent / "hook")
"""Folder that is first in PYTHONPATH."""
STEPS_VARIABLE: Final = "BATCHCAL_PROBE_STEPS"
PLAN_PREFIX: Final = "BATCHCAL_PLAN_"
QUIET: Final = {
    "WANDB_MODE": "disabled",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "COMET_MODE": "disabled",
    "SWANLAB_MODE": "disabled",
    "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",
    "CLEARML_OFFLINE_MODE": "1",
    "NEPTUNE_MODE": "debug",
}
"""Variables that switch off loggers and uploads: Weights & Biases, Hugging Face, Comet, SwanLab, ClearML, Neptune."""
IN_SCRATCH: Final = {"PL_TRAINER_DEFAULT_ROOT_DIR": "", "MLFLOW_TRACKING_URI": "file:", "TENSORBOARD_LOGGING_DIR": ""}
"""Variables that send the files of Lightning, MLflow and Hugging Face's TensorBoard to the scratch folder, by the start of their
value."""


def environment_of(base: Mapping[str, str], policy: AllocatorPolicy, *, scratch: str, threads: int, steps: int) -> dict[str, str]:
    """Return the environment of one run.

    Args:
        scratch: folder for temporary files, which launchers such as torchrun leave behind when they are killed.
        threads: intra-op threads of each process.
        steps: optimizer steps after which each process stops.
    """
    variables = {name: value for name, value in base.items() if not name.startswith(PLAN_PREFIX)}
    variables = policy.process_environment(variables)
    path = variables.get("PYTHONPATH", "")
    variables["PYTHONPATH"] = os.pathsep.join([HOOK, path]) if path else HOOK
    quiet = QUIET | {name: f"{start}{scratch}" for name, start in IN_SCRATCH.items()}
    variables.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "torchinductor_batchcal"))
    return variables | quiet | {"TMPDIR": scratch, "OMP_NUM_THREADS": str(threads), STEPS_VARIABLE: str(steps)}
