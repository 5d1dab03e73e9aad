"""Formats of a plan for other programs: JSON, shell exports, a dotenv file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Final

from batchcal.core.errors import UsageError
from batchcal.core.progress import Fields, key_values
from batchcal.plan.plan import KEYS, Plan

PREFIX: Final = "BATCHCAL_PLAN_"

# Text that sh, docker --env-file, GITHUB_ENV and python-dotenv all read alike. Some read a blank or a quote differently.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:,+@%=~-]*")


def as_json(plan: Plan) -> str:
    """One JSON document, with the reasons and notices."""
    return plan.model_dump_json(indent=2) + "\n"


def as_sh(plan: Plan, allocator_environment: Mapping[str, str]) -> str:
    """`export NAME='value'` lines for `eval "$(batchcal plan --format sh)"`.

    Args:
        allocator_environment: the variables that put the plan's allocator into force.

    Raises:
        UsageError: shells and env files do not all read a value alike, such as a library path with a blank.
    """
    return "".join(f"export {name}={_quoted(value)}\n" for name, value in exported(plan, allocator_environment).items())


def as_dotenv(plan: Plan, allocator_environment: Mapping[str, str]) -> str:
    """`NAME=value` lines, unquoted: for `docker --env-file`, `GITHUB_ENV`, Kubernetes.

    Raises:
        UsageError: as for `as_sh`.
    """
    return "".join(f"{name}={value}\n" for name, value in exported(plan, allocator_environment).items())


def as_lines(plan: Plan) -> tuple[str, str]:
    """Return one line for the loader and one for the training, key=value, for the log of the caller that applies the plan."""
    loader: Fields = {
        "num_workers": plan.num_workers,
        "persistent_workers": plan.persistent_workers,
        "prefetch_factor": plan.prefetch_factor,
        "pin_memory": plan.pin_memory,
    }
    training: Fields = {
        "device": plan.device,
        "threads_intra": plan.intra_op_threads,
        "threads_interop": plan.interop_threads,
        "batch_size": plan.micro_batch,
        "accumulation_steps": plan.accumulation_steps,
        "effective_batch": plan.effective_batch,
        "allocator": plan.allocator,
    }
    return f"INFO {key_values('dataloader_config', loader)}", f"INFO {key_values('training_config', training)}"


def failure_sh(exit_code: int) -> str:
    """Return the text that `--format sh` must print when it fails.

    `set -e; eval "$(batchcal plan --format sh)"` ignores the command's own exit code, but not that of an evaluated subshell.
    Without `set -e` the code is in `$?`.
    """
    return f"(exit {exit_code})\n"


def variables(plan: Plan, allocator_environment: Mapping[str, str]) -> dict[str, str]:
    """Every variable that a plan sets: its own keys, OMP_NUM_THREADS, the allocator's."""
    values = {PREFIX + key.upper(): _text(getattr(plan, key)) for key in KEYS}
    return values | {"OMP_NUM_THREADS": str(plan.intra_op_threads)} | dict(allocator_environment)


def exported(plan: Plan, allocator_environment: Mapping[str, str]) -> dict[str, str]:
    """The same variables, for programs that read them as text.

    Raises:
        UsageError: as for `as_sh`.
    """
    values = variables(plan, allocator_environment)
    for name, value in values.items():
        if _PLAIN.fullmatch(value) is None:
            raise UsageError(
                f"{name} cannot be exported: shells and env files would read its value differently",
                known=f"its value is {value!r}; letters, digits and _ . / : , + @ % = ~ - are safe",
                try_="batchcal plan --format json",
            )
    return values


def _quoted(value: str) -> str:
    quoted = shlex.quote(value)
    return quoted if quoted.startswith("'") else f"'{quoted}'"


def _text(value: object) -> str:
    """Separate lists by commas, write None as nothing (to reset a variable of an earlier plan), and booleans in lower case."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(_text(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
