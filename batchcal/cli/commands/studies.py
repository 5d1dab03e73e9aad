"""Studies from a config with [hpo]: run a study, show it, or return its best trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchcal.cli.commands.training import options_of
from batchcal.cli.invocation import open_invocation, options_from
from batchcal.cli.output import stdout
from batchcal.cli.output.document import study as document
from batchcal.cli.output.messages import Messages
from batchcal.cli.output.stop_key import stopping_at_q
from batchcal.core.errors import BatchcalError, Interrupted, NotSaved, UsageError
from batchcal.core.files import check_target, write_atomically
from batchcal.core.progress import Notice
from batchcal.core.units import count_of
from batchcal.detect.detect import detect, detect_for
from batchcal.hpo.config import MIN_DELTA, PATIENCE, as_toml, study_of, with_changes
from batchcal.hpo.search.matrix import members
from batchcal.hpo.search.space import BATCH_SIZE
from batchcal.values.settings import CalibrateSettings, TrainSettings
from batchcal.values.study_events import StudyStarted
from batchcal.workload.spec.config import read_config

if TYPE_CHECKING:
    from batchcal.calibration.schema import Options
    from batchcal.cli.invocation import Invocation
    from batchcal.cli.output.progress import StudyListener
    from batchcal.hpo.blueprint import Blueprint
    from batchcal.hpo.config import StudySettings
    from batchcal.hpo.study_status import StudyStatus, TrialStatus
    from batchcal.train.options import TrainOptions
    from batchcal.values.settings import Settings
    from batchcal.workload.spec.config import Config

JOURNAL_BEGINS: Final = b'{"op_code":'
"""First bytes of Optuna's journal. Its first line is the creation of a study."""
WRITTEN: Final = "# Written by batchcal hpo run --write-configs, which may write it again.\n"
"""First line of a config of a family."""
SMALLEST_STUDY: Final = """\
[task]
spec = "train.py:task"
[hpo]
study = "first"
[hpo.space]
batch_size = { kind = "categorical", choices = [16, 32, 64] }"""
SHAPE_S: Final = 10.0
"""Time limit of the calibration of each shape if [calibrate] has no time_limit, seconds. A study has many shapes."""


@dataclass(frozen=True)
class OpenStudy:
    """The config of a study, after it was read."""

    invocation: Invocation
    blueprint: Blueprint
    options: Options
    """Options for the calibration of each shape by one worker alone."""


def needs_optuna() -> None:
    """Raise UsageError if the extra `hpo` is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UsageError(
            "studies need Optuna, which is not installed",
            known="Optuna is an optional dependency; detect, calibrate, plan and train do not need it",
            try_='pip install "batchcal[hpo]"',
        ) from None


def read(config: str) -> Config:
    """Read the config of a study.

    Raises:
        UsageError: the file is not a config.
    """
    if not config.endswith(".toml"):
        raise UsageError(
            f"{config!r} is not a config file",
            known="a study is described by a TOML file with [task], [hpo] and [hpo.space]",
            try_=f"batchcal hpo run study.toml    with this in study.toml:\n{SMALLEST_STUDY}",
        )
    directory = Path.cwd()
    return read_config(directory / config, directory=directory)


def prepare_study(config: str, changed: Config, messages: Messages) -> OpenStudy:
    """Return the study that `changed` requests on this machine. `changed` was read from `config`.

    Raises:
        UsageError: a key, a value or a space is invalid.
    """
    from batchcal.hpo.blueprint import Blueprint
    from batchcal.hpo.storage.backend import absolute_storage

    settings, space = study_of(changed, config)
    if settings.storage is not None:
        settings = settings.model_copy(update={"storage": absolute_storage(settings.storage, Path.cwd())})
    invocation = open_invocation(config, flags={}, revise=lambda _: changed, messages=messages)
    effective_batch = invocation.settings.plan.effective_batch
    if effective_batch is None and BATCH_SIZE not in space:
        raise UsageError(
            f"{config}: the effective batch is not set: [hpo.space] has no batch_size, and [plan] has no effective_batch",
            known="without either, it would differ between shapes and machines, and trials could not be compared",
            try_='--set effective_batch=64\nbatch_size = { kind = "categorical", choices = [16, 32, 64] } below [hpo.space]',
        )
    options = options_from(invocation.settings, limit_bytes=detect().memory.limit.value)
    if not invocation.settings.is_set(CalibrateSettings.time_limit):
        options = options.model_copy(update={"time_limit_s": SHAPE_S})
    options = options.model_copy(update={"seed": settings.seed})
    blueprint = Blueprint(
        settings=settings,
        space=dict(space),
        reference=invocation.task(),
        options=_train_options(invocation.settings, settings, margin=options.margin),
        effective_batch=effective_batch or 1,
    )
    return OpenStudy(invocation, blueprint, options)


def _train_options(settings: Settings, study: StudySettings, *, margin: float) -> TrainOptions:
    """Return the options of `train`. Unless [train] sets otherwise, trials stop early by the metric of the study."""
    options = replace(options_of(settings, margin=margin), seed=study.seed)
    if not settings.is_set(TrainSettings.watch):
        options = replace(options, watch=study.metric, watch_mode="max" if study.direction == "maximize" else "min")
    if not settings.is_set(TrainSettings.patience):
        options = replace(options, patience=PATIENCE)
    if not settings.is_set(TrainSettings.min_delta):
        options = replace(options, min_delta=MIN_DELTA)
    return options


def status_of(blueprint: Blueprint, config: str, messages: Messages, *, to_train: bool = False) -> StudyStatus:
    """Return the study as it is in its storage, even if the config has changed. A note reports another study in the config.

    Args:
        config: the config file of `blueprint`.
        to_train: a training with the result of the study follows, with everything else from `blueprint`.

    Raises:
        UsageError: the study was not begun, or is another one than the study to train from.
    """
    from batchcal.hpo.blueprint import check_same
    from batchcal.hpo.study import IDENTITY, read_study, table_of
    from batchcal.hpo.study_status import study_status

    study = read_study(blueprint.storage, blueprint.settings.study, config=config)
    try:
        check_same(blueprint.settings.study, table_of(study.user_attrs.get(IDENTITY)), blueprint.identity())
    except UsageError as error:
        if to_train:
            raise
        messages.print(f"note: this study was started with a different config: {error.known}")
    return study_status(study)


def best_of(status: StudyStatus, config: str) -> TrialStatus:
    """Return the best trial of the study that `config` describes.

    Raises:
        UsageError: no trial is complete.
    """
    best = status.best()
    if best is None:
        raise UsageError(
            f"study {status.name!r} has no complete trial yet",
            known=f"it has {count_of(len(status.trials), 'trial')} so far, of {status.wanted}",
            try_=f"batchcal hpo run {config}",
        )
    return best


def run(prepared: OpenStudy, *, workers: int, listener: StudyListener) -> tuple[StudyStatus, int]:
    """Run the study with this number of workers until it is done or `q` is pressed. Returns the state of the study and the
    number of presses: the first ends the study after the running trials, the second ends these, too.

    Raises:
        BatchcalError: see `WorkerPool.run`.
    """
    from batchcal.hpo.storage.journal import remove_abandoned
    from batchcal.hpo.study import open_study
    from batchcal.hpo.study_status import study_status
    from batchcal.hpo.workers.assignments import share_out
    from batchcal.hpo.workers.pool import WorkerPool

    blueprint = prepared.blueprint
    assignments = share_out(blueprint, prepared.options, detect_for(prepared.options.device), workers)
    study, _ = open_study(blueprint)  # errors in the study are reported here, once
    status, progress = study_status(study), listener.progress
    progress.event(
        StudyStarted(study=status.name, trials=status.wanted, done=status.done, workers=workers, storage=blueprint.shown_storage)
    )
    presses = 0

    def tick() -> None:
        if listener.update is None:
            return
        try:
            listener.update(study_status(study))
        except BatchcalError:  # a signal
            raise
        except Exception:  # noqa: BLE001, S110 - a database that is away for a while: the workers and the view continue
            pass

    worker_pool = WorkerPool(assignments, logs=blueprint.folder / "logs", progress=progress, tick=tick)

    def pressed() -> None:
        nonlocal presses
        presses += 1
        if presses == 1:
            worker_pool.finish()
            progress.event(Notice("no new trial will start; press q again to stop the running trials"))
        else:
            worker_pool.stop()

    with stopping_at_q(pressed) as listens:
        if listens:
            progress.event(Notice("press q to stop after the running trials"))
        try:
            worker_pool.run()
        except Interrupted as error:
            outcome = "finished trials are saved; trials that were running will run again"
            raise Interrupted(error.signal_number, known=outcome, try_="the same command, which continues the study") from None
        finally:
            if "://" not in blueprint.storage:
                remove_abandoned(Path(blueprint.storage))
    return study_status(study), presses


def families(config: Config, sets: Sequence[str], axes: Sequence[str]) -> tuple[Config, ...]:
    """Return `config` with every `--set`, once for each combination of `--matrix`.

    Raises:
        UsageError: a change cannot be made.
    """
    changed = with_changes(config, sets)
    return members(changed, axes) if axes else (changed,)


def write_family(configs: Sequence[Config], folder: Path, name: str) -> list[Path]:
    """Write each as a plain config of its own, named after its study. Returns the paths.

    Args:
        name: path of the config they were made from, which is named in messages and not replaced.

    Raises:
        UsageError: a config is not a study, or would replace the config it was made from.
        NotSaved: the folder cannot be written to.
    """
    import tomli_w  # of the extra hpo

    written: list[Path] = []
    for config in configs:
        settings, _ = study_of(config, name)
        path = folder / f"{settings.study.replace(' ', '_')}.toml"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and Path(name).exists() and path.samefile(name):
                raise UsageError(
                    f"{path} is the config of this command; --write-configs does not replace it",
                    try_="--write-configs another-folder",
                )
            text = WRITTEN + tomli_w.dumps(as_toml(config))
            check_target(
                path,
                name="--write-configs",
                document="a config that --write-configs wrote",
                is_ours=lambda begin: begin.startswith(WRITTEN.encode()),
                example="study.toml",
                instead="--write-configs another-folder",
            )
            write_atomically(path, text.encode(), mode=0o666)
        except OSError as error:
            raise NotSaved(
                f"{path} cannot be written", known=error.strerror or str(error), try_="--write-configs another-folder"
            ) from None
        written.append(path)
    return written


def names_a_study(file: str | None) -> bool:
    """True if `file` is the config of a study, its journal, or the URL of a database."""
    if file is None:
        return False
    return "://" in file or file.endswith((".toml", ".journal")) or _is_journal(Path(file))


def _is_journal(path: Path) -> bool:
    """True if the file is a journal, whatever its name. Checked here because a calibration is shown without Optuna."""
    try:
        with path.open("rb") as file:
            return file.read(len(JOURNAL_BEGINS)) == JOURNAL_BEGINS
    except OSError:
        return False


def show_study(file: str, *, html: str | None, as_json: bool, messages: Messages) -> None:
    """Show a study on the terminal, as JSON or as a page.

    Raises:
        UsageError: `file` is not a study, or cannot be read.
        NotSaved: the page could not be written.
    """
    needs_optuna()
    from batchcal.hpo.storage.backend import SQLITE, without_password
    from batchcal.hpo.study import read_study
    from batchcal.hpo.study_status import study_status

    if file.endswith(".toml"):
        blueprint = prepare_study(file, read(file), messages).blueprint
        study = read_study(storage := blueprint.storage, blueprint.settings.study, config=file)
    else:
        study = read_study(storage := file)
    status, shown_storage = study_status(study), without_password(storage)
    if html is not None:
        from batchcal.cli.output.page_file import write_page
        from batchcal.cli.views.study.page import page
        from batchcal.hpo.search.importance import importances

        write_page(Path(html), page(status, importances(study), shown_storage), shows=Path(storage.removeprefix(SQLITE)))
        messages.print(f"written: {html}")
    if as_json:
        stdout.emit(document(status, shown_storage))
    elif html is None:
        from batchcal.cli.views.study.view import show

        stdout.render(show(status, storage=shown_storage))
