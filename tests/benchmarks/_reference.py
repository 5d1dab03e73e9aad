"""Which task a benchmark is about. Imports no torch: 200 MiB of it in the process that watches are missed in a small group."""

from __future__ import annotations

import tomllib
from pathlib import Path

from batchcal.workload.spec.reference import TaskReference


def reference_of(config: str) -> TaskReference:
    """A TOML config or a SPEC, as `batchcal calibrate` takes it."""
    if not config.endswith(".toml"):
        return TaskReference(spec=config, directory=str(Path.cwd()))
    table = tomllib.loads(Path(config).read_text(encoding="utf-8"))["task"]
    return TaskReference(spec=table["spec"], directory=str(Path.cwd()), arguments=table.get("args", {}), config=config)
