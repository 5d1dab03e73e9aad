"""Turns a TaskReference into a Task by running the user's module and factory. Only in a child, or in the training itself."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Final

import torch
from torch import nn
from torch.optim import Optimizer

from batchcal.core.errors import BatchcalError, UsageError, UserCodeError
from batchcal.workload.model.lazy_modules import initialise_lazy
from batchcal.workload.spec.modules import file_of, make_importable, module_of_file, no_module
from batchcal.workload.spec.process_settings import settings_kept, warned
from batchcal.workload.spec.reference import Spec, TaskReference, parse_spec
from batchcal.workload.spec.unsupported import refuse_unsupported
from batchcal.workload.spec.user_traceback import blame, in_user_code
from batchcal.workload.task import Task

_TEMPLATE: Final = "return batchcal.Task(model=..., optimizer=..., train_data=..., loss=...)"
_DEVICE: Final = "device"


def load_task(reference: TaskReference, *, device: str, note: Callable[[str], None] = warned) -> Task:
    """Imports the module, calls the factory with what its signature names, and checks that it returns a task.

    The factory gets `device` (a torch.device) and the reference's arguments, by name, `device` only where it takes one. The
    module stays in sys.modules, its folder on sys.path and its name in sys.argv, as under `python FILE`, so that DataLoader
    workers, also spawned ones, find the classes of their datasets and import the same module.

    Args:
        note: gets a line for each setting of the module that batchcal replaces.

    Raises:
        UsageError: no such module, file or function; an argument that the factory does not take, or one that it lacks.
        UserCodeError: the module or the factory raised, or exited, or the result is not a task that can be trained.
    """
    spec = parse_spec(reference.spec)
    directory = Path(reference.directory)
    sys.argv = [_script(spec, directory)]
    with settings_kept(spec.file or spec.module or "", note):
        module = _import_module(spec, directory) if spec.file is None else _import_file(spec, directory)
        factory = _factory(module, spec)
        arguments = _arguments(factory, reference, torch.device(device))
        try:
            made = factory(**arguments)
        except BatchcalError:
            raise
        except (Exception, SystemExit) as error:
            raise blame(error, f"the factory {reference.spec}", try_=_alone(module, spec, arguments)) from error
    task = _checked(made, reference.spec)
    initialise_lazy(task, torch.device(device))
    return task


def _script(spec: Spec, directory: Path) -> str:
    """sys.argv[0] under `python FILE`, or under `python -m MODULE` as far as the disk shows its file."""
    if spec.file is not None:
        return spec.file
    file = directory / f"{(spec.module or '').replace('.', '/')}.py"
    return str(file) if file.is_file() else spec.module or ""


def _import_module(spec: Spec, directory: Path) -> ModuleType:
    make_importable((directory,))
    name = spec.module or ""
    try:
        return importlib.import_module(name)
    except BatchcalError:
        raise
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        # `import absent` in the user's module raises the same error as a wrong SPEC: the importing frame distinguishes them.
        if missing is not None and f"{name}.".startswith(f"{missing}.") and not in_user_code(error.__traceback__):
            raise no_module(name, missing, spec.attribute, directory) from None
        raise blame(error, f"importing {name}", try_=f"python -c 'import {name}'") from error


def _import_file(spec: Spec, directory: Path) -> ModuleType:
    file = file_of(spec, directory)
    named = module_of_file(file)
    make_importable(named.folders, (*named.parents, directory))
    try:
        module = importlib.import_module(named.name)
    except BatchcalError:
        raise
    except (Exception, SystemExit) as error:
        try_ = f"python {quote(spec.file or '')}"
        if isinstance(error, ImportError) and error.name is None and "." not in named.name and "relative" in str(error):
            try_ = f"an absolute import, or another name for the folder: a module {file.parent.name} is installed already"
        raise blame(error, f"importing {spec.file}", try_=try_) from error
    origin = getattr(module, "__file__", None)
    if not isinstance(origin, str) or Path(origin).resolve() != file:
        raise UsageError(
            f"{spec.file} has the name of another module, {named.name}",
            known=f"workers would find that one: {origin or 'a part of Python itself'}",
            try_=f"rename the file, for example to {file.stem}_task.py",
        )
    return module


def _factory(module: ModuleType, spec: Spec) -> Callable[..., object]:
    where = spec.file or spec.module
    value: object = module
    for name in spec.attribute.split("."):
        if not hasattr(value, name):
            own = _functions(module)
            close = difflib.get_close_matches(name, own, n=1) or own[:1]
            raise UsageError(
                f"{where} has no {spec.attribute}",
                known=f"functions in it: {', '.join(own[:8])}" if own else "it defines no function",
                try_=f"batchcal calibrate {quote(where or '')}:{close[0]}" if close else f"def task(device): {_TEMPLATE}",
            )
        value = getattr(value, name)
    if not callable(value):
        raise UsageError(
            f"{where}:{spec.attribute} is {_a(value)}, not a function",
            known=f"functions in {where}: {', '.join(names)}"
            if (names := _functions(module))
            else "each measurement calls this function, to build the task again in its own process",
            try_=f"batchcal calibrate {quote(where or '')}:{names[0]}" if names else f"def task(device): {_TEMPLATE}",
        )
    return value


def _functions(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__module__ == module.__name__
    ]


def _arguments(factory: Callable[..., object], reference: TaskReference, device: torch.device) -> dict[str, object]:
    """Arguments for the factory."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables of C have none
        parameters = {}.values()
    by_name = {one.name: one for one in parameters if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}}
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    own = [name for name in by_name if name != _DEVICE]
    for name in reference.arguments:
        if name == _DEVICE:
            raise UsageError(
                "the argument 'device' is batchcal's to give", known="it is the device that is measured", try_="--device cpu"
            )
        if name not in by_name and not takes_any:
            close = difflib.get_close_matches(name, own, n=1)
            raise UsageError(
                f"{reference.spec} takes no argument {name!r}" + (f" (did you mean {close[0]}?)" if close else ""),
                known=f"it takes {', '.join(own)}" if own else "it takes no argument but the device",
                try_=f"{close[0]} instead of {name} below [task.args]" if close else f"remove {name} from [task.args]",
            )
    given: dict[str, object] = dict(reference.arguments)
    if _DEVICE in by_name:
        given[_DEVICE] = device
    for one in parameters:
        needs = one.default is one.empty and one.kind not in {one.VAR_KEYWORD, one.VAR_POSITIONAL}
        if needs and (one.name not in given or one.kind is one.POSITIONAL_ONLY):
            raise UsageError(
                f"{reference.spec} needs an argument {one.name!r}, which it is not given",
                known="a factory is called with `device`, where it takes one, and the [task.args] of its config, all by name",
                try_=f"{one.name} = ... below [task.args]; or a default: def {reference.spec.rpartition(':')[2]}({one.name}=...)",
            )
    return given


def _alone(module: ModuleType, spec: Spec, arguments: Mapping[str, object]) -> str:
    """A command line that calls the factory by itself."""
    plain = {name: str(value) if name == _DEVICE else value for name, value in arguments.items()}
    given = ", ".join(f"{name}={value!r}" for name, value in plain.items())
    call = f"import {module.__name__} as m; m.{spec.attribute}({given})"
    folder = quote(str(Path(module.__file__ or ".").parent))
    return f'python -c "{call}"' if spec.file is None else f'cd {folder}; python -c "{call}"'


def _checked(made: object, spec: str) -> Task:
    if inspect.iscoroutine(made):
        made.close()  # otherwise Python warns later that it was never awaited
    if not isinstance(made, Task):
        raise UserCodeError(
            f"{spec} returned {_a(made)}", known="the function that the SPEC names has to return a batchcal.Task", try_=_TEMPLATE
        )
    refuse_unsupported(made, spec)
    reads = hasattr(made.train_data, "__getitem__") or hasattr(made.train_data, "__iter__")
    wrong = (
        (not isinstance(made.model, nn.Module), "model", made.model, "a torch.nn.Module"),
        (not isinstance(made.optimizer, Optimizer), "optimizer", made.optimizer, "a torch.optim.Optimizer"),
        (not reads, "train_data", made.train_data, "a Dataset: samples[0], or iter(samples). batchcal builds the loaders"),
        (not callable(made.loss), "loss", made.loss, "a function: loss(model, batch) -> the mean over the batch"),
    )  # fmt: skip
    for is_wrong, name, value, wanted in wrong:
        if is_wrong:
            raise UserCodeError(
                f"{spec} returned a Task whose {name} is {_a(value)}", known=f"{name} is {wanted}", try_=_TEMPLATE
            )
    if any(parameter.is_meta for parameter in made.model.parameters()):
        raise UserCodeError(
            f"{spec} returned a Task whose model is on the device 'meta', without values",
            known="it was built under torch.device('meta'), or for weights that are loaded later",
            try_="model.to_empty(device=device), then its initial or loaded weights, before the optimizer is built",
        )
    effective: object = made.effective_batch
    is_count = isinstance(effective, int) and not isinstance(effective, bool) and effective >= 1
    if effective is not None and not is_count:
        raise UserCodeError(
            f"{spec} returned a Task whose effective_batch is {effective!r}",
            known="effective_batch is the number of samples per optimizer step: an int of 1 or more, or None",
            try_="batchcal.Task(..., effective_batch=64)",
        )
    optimized = {id(parameter) for group in made.optimizer.param_groups for parameter in group["params"]}
    if optimized.isdisjoint(id(parameter) for parameter in made.model.parameters()):
        raise UserCodeError(
            f"{spec} returned a Task whose optimizer holds none of the model's parameters",
            known="training would not change this model: the optimizer has parameters of another model, or replaced ones",
            try_="build the optimizer last: torch.optim.AdamW(model.parameters())",
        )
    return made


def _a(value: object) -> str:
    """`None`, `42`, `a Net`."""
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
