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
from batchcal.workload.spec.process_settings import preserve_settings, warned
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
    with preserve_settings(spec.file or spec.module or "", note):
        module = _import_module(spec, directory) if spec.file is None else _import_file(spec, directory)
        factory = _factory(module, spec)
        arguments = _arguments(factory, reference, torch.device(device))
        try:
            result = factory(**arguments)
        except BatchcalError:
            raise
        except (Exception, SystemExit) as error:
            raise blame(error, f"the factory {reference.spec}", try_=_direct_call(module, spec, arguments)) from error
    task = _checked(result, reference.spec)
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
            try_ = f"an absolute import, or another name for the folder: a module {file.parent.name} is already installed"
        raise blame(error, f"importing {spec.file}", try_=try_) from error
    origin = getattr(module, "__file__", None)
    if not isinstance(origin, str) or Path(origin).resolve() != file:
        raise UsageError(
            f"{spec.file} has the same name as another module, {named.name}",
            known=f"DataLoader workers would import that module: {origin or 'a part of Python itself'}",
            try_=f"rename the file, for example to {file.stem}_task.py",
        )
    return module


def _factory(module: ModuleType, spec: Spec) -> Callable[..., object]:
    source = spec.file or spec.module
    value: object = module
    for name in spec.attribute.split("."):
        if not hasattr(value, name):
            own = _functions(module)
            close = difflib.get_close_matches(name, own, n=1) or own[:1]
            raise UsageError(
                f"{source} has no function {spec.attribute}",
                known=f"functions in it: {', '.join(own[:8])}" if own else "it defines no function",
                try_=f"batchcal calibrate {quote(source or '')}:{close[0]}" if close else f"def task(device): {_TEMPLATE}",
            )
        value = getattr(value, name)
    if not callable(value):
        raise UsageError(
            f"{source}:{spec.attribute} is {_a(value)}, not a function",
            known=f"functions in {source}: {', '.join(names)}"
            if (names := _functions(module))
            else "each measurement calls this function, to build the task again in its own process",
            try_=f"batchcal calibrate {quote(source or '')}:{names[0]}" if names else f"def task(device): {_TEMPLATE}",
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
    by_name = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    own = [name for name in by_name if name != _DEVICE]
    for name in reference.arguments:
        if name == _DEVICE:
            raise UsageError(
                "the argument 'device' cannot be set", known="batchcal passes the device itself", try_="--device cpu"
            )
        if name not in by_name and not takes_any:
            close = difflib.get_close_matches(name, own, n=1)
            raise UsageError(
                f"{reference.spec} takes no argument {name!r}" + (f" (did you mean {close[0]}?)" if close else ""),
                known=f"it takes {', '.join(own)}" if own else "it takes no argument except device",
                try_=f"{close[0]} instead of {name} below [task.args]" if close else f"remove {name} from [task.args]",
            )
    values: dict[str, object] = dict(reference.arguments)
    if _DEVICE in by_name:
        values[_DEVICE] = device
    for parameter in parameters:
        name = parameter.name
        needs = parameter.default is parameter.empty and parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
        if needs and (name not in values or parameter.kind is parameter.POSITIONAL_ONLY):
            raise UsageError(
                f"{reference.spec} needs an argument {name!r}, which has no value",
                known="batchcal calls the function by keyword, with [task.args] of the config, and with `device` if it takes one",
                try_=f"{name} = ... below [task.args]; or a default: def {reference.spec.rpartition(':')[2]}({name}=...)",
            )
    return values


def _direct_call(module: ModuleType, spec: Spec, arguments: Mapping[str, object]) -> str:
    """A command line that calls the factory by itself."""
    plain = {name: str(value) if name == _DEVICE else value for name, value in arguments.items()}
    listed = ", ".join(f"{name}={value!r}" for name, value in plain.items())
    call = f"import {module.__name__} as m; m.{spec.attribute}({listed})"
    folder = quote(str(Path(module.__file__ or ".").parent))
    return f'python -c "{call}"' if spec.file is None else f'cd {folder}; python -c "{call}"'


def _checked(task: object, spec: str) -> Task:
    if inspect.iscoroutine(task):
        task.close()  # otherwise Python warns later that it was never awaited
    if not isinstance(task, Task):
        raise UserCodeError(
            f"{spec} returned {_a(task)}", known="the function that the SPEC names must return a batchcal.Task", try_=_TEMPLATE
        )
    refuse_unsupported(task, spec)
    reads = hasattr(task.train_data, "__getitem__") or hasattr(task.train_data, "__iter__")
    wrong = (
        (not isinstance(task.model, nn.Module), "model", task.model, "a torch.nn.Module"),
        (not isinstance(task.optimizer, Optimizer), "optimizer", task.optimizer, "a torch.optim.Optimizer"),
        (not reads, "train_data", task.train_data, "a Dataset with data[0] or iter(data); batchcal builds the DataLoaders"),
        (not callable(task.loss), "loss", task.loss, "a function: loss(model, batch) returns the mean over the batch"),
    )  # fmt: skip
    for is_wrong, name, value, expected in wrong:
        if is_wrong:
            raise UserCodeError(
                f"{spec} returned a Task whose {name} is {_a(value)}", known=f"{name} must be {expected}", try_=_TEMPLATE
            )
    if any(parameter.is_meta for parameter in task.model.parameters()):
        raise UserCodeError(
            f"{spec} returned a Task whose model is on the device 'meta', where parameters have no values",
            known="the model was built under torch.device('meta'), or for weights that are loaded later",
            try_="model.to_empty(device=device), then initialise or load its weights, before the optimizer is built",
        )
    effective: object = task.effective_batch
    is_count = isinstance(effective, int) and not isinstance(effective, bool) and effective >= 1
    if effective is not None and not is_count:
        raise UserCodeError(
            f"{spec} returned a Task whose effective_batch is {effective!r}",
            known="effective_batch is the number of samples per optimizer step: an int of 1 or more, or None",
            try_="batchcal.Task(..., effective_batch=64)",
        )
    optimized = {id(parameter) for group in task.optimizer.param_groups for parameter in group["params"]}
    if optimized.isdisjoint(id(parameter) for parameter in task.model.parameters()):
        raise UserCodeError(
            f"{spec} returned a Task whose optimizer holds none of the model's parameters",
            known="training would not change the model: the optimizer has parameters of another model, or replaced parameters",
            try_="build the optimizer last: torch.optim.AdamW(model.parameters())",
        )
    return task


def _a(value: object) -> str:
    """`None`, `42`, `a Net`."""
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
