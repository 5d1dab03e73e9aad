"""Several studies from one config: one study, with its own name, for each combination of some values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from batchcal.core.errors import UsageError
from batchcal.hpo.config import with_changes
from batchcal.workload.spec.config import Config

MOST: Final = 1_000
"""Most studies of one matrix."""


def members(config: Config, axes: Sequence[str]) -> tuple[Config, ...]:
    """Return a config for each combination of `NAME=VALUE,VALUE`: `budget=2M,20M,200M,2B` and `horizon=5,10,20` are twelve.

    The name of each study is the name in the config and the values of the combination: `patchtst-budget=2M-horizon=5`.

    Raises:
        UsageError: an axis has no values, a name appears twice, or there are more than 1,000 combinations.
    """
    named: list[tuple[str, list[str]]] = []
    for axis in axes:
        name, _, values = axis.partition("=")
        choices = [value.strip() for value in values.split(",")]
        if not name.strip() or not all(choices):
            raise UsageError(f"--matrix {axis!r} is not NAME=VALUE,VALUE", try_="--matrix budget=2M,20M --matrix horizon=5,10")
        if any(name.strip() == earlier for earlier, _ in named):
            raise UsageError(f"--matrix has {name.strip()} twice", try_=f"--matrix {name.strip()}={values},... once")
        named.append((name.strip(), choices))
    count = 1
    for _, choices in named:
        count *= len(choices)
    if count > MOST:
        raise UsageError(f"--matrix gives {count} studies", known=f"the maximum is {MOST}", try_="fewer values in --matrix")
    return tuple(
        _member(config, [f"{name}={value}" for (name, _), value in zip(named, combination, strict=True)])
        for combination in (itertools.product(*(choices for _, choices in named)))
    )


def _member(config: Config, changes: list[str]) -> Config:
    base = config.tables.get("hpo", {}).get("study", "study")
    return with_changes(config, [*changes, "study=" + "-".join([str(base), *changes])])
