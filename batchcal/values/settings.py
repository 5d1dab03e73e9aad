"""Every setting of batchcal, defined once: its table and key in a file, its default, its help.

Flags, `BATCHCAL_*` variables, the keys of TOML files, `--help` and docs/settings.md follow from these tables. To add a setting,
add a line here and read the attribute in the code that uses it. If it is also a flag, name it in `cli/verbs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from batchcal.core.option import Option, Table
from batchcal.core.readers import (
    batch_size,
    count,
    count_from_zero,
    duration,
    fraction,
    integer_from,
    line,
    line_or_off,
    number,
    one_of,
    positive_number,
    size,
    switch,
)
from batchcal.core.settings import Settings as Engine
from batchcal.core.settings import SettingSource

Objective = Literal["memory", "throughput"]
"""`memory`: the largest micro-batch that fits; `throughput`: the fastest of the timed micro-batches."""
WatchMode = Literal["min", "max"]
Schedule = Literal["constant", "linear", "cosine"]
LearningRateRule = Literal["none", "linear", "sqrt"]
Batching = Literal["plain", "greedy", "bucketed"]
LossWeights = Literal["task", "gradnorm", "gradnorm-paper"]
WhenSplit = Literal["stop", "split"]

ON_OOM: Final = "stop (end the training), split (smaller micro-batches, which train BatchNorm differently)"
MOST_WORKERS: Final = 1024
LIMITS: Final = "Limits"
SEARCH: Final = "Search"
OBJECTIVES: Final = "memory (the largest micro-batches), throughput (the fastest)"


class CalibrateSettings(Table):
    """[calibrate]: subject and limits of the measurements."""

    name = "calibrate"
    margin = Option(
        fraction("15%"), None, "Share of the memory limit to leave free.",
        metavar="SHARE", panel=LIMITS, default_text="15% on a CPU, 10% on a GPU",
    )  # fmt: skip
    headroom = Option(
        fraction("60%"), None, "Try larger batches while the peak is below this share of the budget.",
        metavar="SHARE", panel=LIMITS, default_text="60%, 70% on a GPU",
    )  # fmt: skip
    memory_limit = Option(size, None, "Use at most this much memory, e.g. 2GiB.", metavar="SIZE", panel=LIMITS)
    max_batch = Option(batch_size, None, "Largest batch size to try.", metavar="N", panel=LIMITS)
    multiple_of = Option(batch_size, 1, "Try only multiples of N.", metavar="N", panel=LIMITS)
    time_limit = Option(
        duration, 60.0, "Stop after this time and keep the best result, e.g. 60s, 5m.",
        metavar="TIME", panel=SEARCH, default_text="60s",
    )  # fmt: skip
    max_probes = Option(count, None, "Largest number of probes.", metavar="N", panel=SEARCH)
    samples = Option(
        count, None, "Largest number of steps of a probe.",
        metavar="N", panel=SEARCH, default_text="8 to 32, by the memory limit",
    )  # fmt: skip
    device = Option(line, "auto", "Device to train on: auto, cpu, cuda, cuda:1, ...", metavar="NAME", panel=SEARCH)
    allocator = Option(
        line, "auto",
        "Memory allocator: auto (the fastest), default, thp, retain, tcmalloc, jemalloc, mimalloc or the path of a library.",
        metavar="POLICY", panel=SEARCH,
    )  # fmt: skip
    activation_checkpointing = Option(
        line, "off",
        "Modules whose activations are computed again in the backward pass: off, auto, or names separated by commas.",
        metavar="off|auto|NAMES", panel=SEARCH,
    )  # fmt: skip
    workers = Option(
        integer_from(0, MOST_WORKERS, suggest=4),
        None,
        "Number of DataLoader workers.",
        metavar="N",
        panel=SEARCH,
        default_text="the fastest number that was measured",
    )
    seed = Option(count_from_zero, 0, "Random seed.", metavar="N", panel=SEARCH)


class PlanSettings(Table):
    """[plan]: properties of the plan that is made from a calibration."""

    name = "plan"
    effective_batch = Option(
        integer_from(1, 2**63 - 1, suggest=512),
        None,
        "Samples per optimizer step.",
        metavar="N",
        panel=SEARCH,
        default_text="Task.effective_batch",
    )
    objective: Option[Objective] = Option(
        one_of("throughput", "memory", meaning=OBJECTIVES), "throughput",
        "throughput: the fastest micro-batches; memory: the largest.", metavar="NAME", panel=SEARCH,
    )  # fmt: skip
    accept_inexact = Option(
        switch, False, "Divide the effective batch even if the loss is not a mean over its samples; gradients then differ.",
        panel=SEARCH,
    )  # fmt: skip
    min_micro_batch = Option(
        batch_size, None, "Smallest micro-batch of a divided batch.",
        metavar="N", panel=SEARCH, default_text="16 with BatchNorm, else 1",
    )  # fmt: skip


class TrainSettings(Table):
    """[train]: settings of a training that its plan does not contain."""

    name = "train"
    epochs = Option(count, 1, "Number of passes over the training data, in total.", metavar="N")
    max_steps = Option(
        count, None, "Stop after N optimizer steps in total, or after --epochs if that is also set.",
        metavar="N", default_text="never",
    )  # fmt: skip
    checkpoint = Option(
        line_or_off, None,
        "File for model and optimizer, written after each epoch and when a signal arrives. In a config, false turns it off.",
        metavar="FILE", default_text="a new file in .batchcal",
    )  # fmt: skip
    checkpoint_every = Option(
        duration, 600.0, "Write a checkpoint also within an epoch, this often.", metavar="TIME", default_text="10m"
    )
    drop_last = Option(switch, False, "Skip the last group of each epoch if it is smaller than the others.")
    log = Option(
        line, None, "File for the log of the run. `batchcal show FILE` displays it.",
        metavar="FILE", default_text="run.jsonl in the folder of the calibration",
    )  # fmt: skip
    tensorboard = Option(line, None, "Folder for TensorBoard logs.", metavar="FOLDER")
    patience = Option(
        count, None, "Stop after N epochs without a better evaluation.", metavar="N", default_text="never"
    )  # fmt: skip
    min_delta = Option(number, 0.0, "A result is better only if it improves by more than this.", metavar="X")
    watch = Option(line, "loss", "Value that early stopping compares: loss, or a metric of the task.", metavar="NAME")
    watch_mode: Option[WatchMode] = Option(
        one_of("min", "max"), "min", "min: a smaller value is better. max: a larger value is better.", metavar="min|max"
    )
    schedule: Option[Schedule] = Option(
        one_of("constant", "linear", "cosine"), "constant", "Learning rate schedule after the warm-up, down to zero.",
        metavar="constant|linear|cosine",
    )  # fmt: skip
    warmup = Option(
        fraction("5%"), 0.0, "Share of the training during which the learning rate rises from zero.", metavar="SHARE"
    )  # fmt: skip
    lr_rule: Option[LearningRateRule] = Option(
        one_of("none", "linear", "sqrt"), "none",
        "Scaling of the learning rate with the effective batch, relative to lr_reference_batch.", metavar="none|linear|sqrt",
    )  # fmt: skip
    lr_reference_batch = Option(
        count, None, "Effective batch for which the learning rate was chosen.", metavar="N", default_text="the plan's"
    )
    max_norm = Option(positive_number, None, "Clip the gradient of each optimizer step to this Euclidean norm.", metavar="X")
    batching: Option[Batching] = Option(
        one_of("plain", "greedy", "bucketed"), "plain",
        "plain: shuffled, in the plan's sizes. bucketed, greedy: samples of similar cost together, within the plan's memory.",
        metavar="plain|greedy|bucketed",
    )  # fmt: skip
    balance = Option(
        fraction("50%"), 0.5, "Balance between memory fit (0) and diversity of task types (1), if batches are made by cost.",
        metavar="SHARE",
    )  # fmt: skip
    window = Option(count, None, "Number of optimizer steps whose samples are grouped by cost.", metavar="N")
    loss_weights: Option[LossWeights] = Option(
        one_of("task", "gradnorm", "gradnorm-paper"), "task",
        "Weights of several task losses: from the task's own loss, or from the norms of their gradients.",
        metavar="task|gradnorm|gradnorm-paper",
    )  # fmt: skip
    start_micro_batch = Option(
        batch_size, None, "Begin with this micro-batch and grow to the plan's while memory allows.",
        metavar="N", default_text="the plan's",
    )  # fmt: skip
    grow_below = Option(fraction("50%"), 0.5, "Grow while memory is below this share of the limit.", metavar="SHARE")
    grow_after = Option(count, 10, "Steps below grow_below before the micro-batch grows.", metavar="N")
    shrink_above = Option(
        fraction("85%"), None, "Shrink when memory is above this share of the limit.", metavar="SHARE", default_text="1 - margin"
    )
    shrink_after = Option(count, 3, "Steps above shrink_above before the micro-batch shrinks.", metavar="N")
    on_oom: Option[WhenSplit] = Option(
        one_of("stop", "split", meaning=ON_OOM), "stop",
        "If a batch of a BatchNorm model does not fit: stop, or split the batch, which changes the training.",
        metavar="stop|split",
    )  # fmt: skip
    fence = Option(switch, True, "Make an allocation fail before the kernel kills the process (CPU only).")


class Settings(Engine):
    """The settings of one command or script, by table."""

    TABLES = (CalibrateSettings, PlanSettings, TrainSettings)

    def __init__(
        self,
        *,
        flags: Mapping[str, str | None] | None = None,
        flag_names: Mapping[str, str] | None = None,
        environ: Mapping[str, str],
        files: Iterable[SettingSource] = (),
    ) -> None:
        """Args and errors: see `core.settings.Settings`."""
        super().__init__(flags=flags, flag_names=flag_names, environ=environ, files=files)
        self.calibrate = CalibrateSettings(self)
        self.plan = PlanSettings(self)
        self.train = TrainSettings(self)
