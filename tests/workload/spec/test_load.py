"""Whatever a user's module or factory does, the answer is a Task or an error that shows his own code."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.core.signals import SIGNALS
from batchcal.workload.spec.load import load_task
from batchcal.workload.spec.process_settings import SettingReplaced
from batchcal.workload.spec.reference import Scalar, TaskReference
from batchcal.workload.task import Task

GOOD = """
import torch, batchcal
from torch import nn

class Data(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, index): return torch.full((3,), float(index))

def task({parameters}):
    seen.append(dict(locals()))
    model = nn.Linear(3, 1)
    return batchcal.Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=Data(),
                         loss=lambda model, batch: model(batch).mean())
seen = []
"""

Load = Callable[..., Task]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Writes train.py (or another file) and loads a spec of it."""
    modules, path, argv = dict(sys.modules), list(sys.path), sys.argv

    def loading(source: str, spec: str = "train.py:task", file: str = "train.py", **arguments: Scalar) -> Task:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(source)
        importlib.invalidate_caches()
        return load_task(TaskReference(spec=spec, directory=str(tmp_path), arguments=arguments), device="cpu")

    yield loading
    sys.path[:], sys.argv = path, argv
    for name in set(sys.modules) - set(modules):
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def seen(module: str = "train") -> dict[str, object]:
    called: dict[str, object] = sys.modules[module].seen[-1]
    return called


@pytest.mark.parametrize(
    ("spec", "file"),
    [
        ("train.py:task", "train.py"),
        ("train:task", "train.py"),
        ("deep/down/train.py:task", "deep/down/train.py"),
        ("package.train:task", "package/train.py"),
        ("my-train.py:task", "my-train.py"),
    ],
)
def test_a_task_is_loaded_from_a_module_or_a_file(load: Load, spec: str, file: str) -> None:
    sample = load(GOOD.format(parameters=""), spec, file).train_data[0]
    assert isinstance(sample, torch.Tensor)


def test_a_factory_receives_only_the_arguments_in_its_signature(load: Load) -> None:
    load(GOOD.format(parameters="device, width=1, *, depth=2"), width=5)
    assert seen() == {"device": torch.device("cpu"), "width": 5, "depth": 2}
    load(GOOD.format(parameters="**rest"), "any:task", "any.py", width=5)
    assert seen("any") == {"rest": {"width": 5}}


def test_a_static_method_can_be_the_factory(load: Load) -> None:
    source = GOOD.format(parameters="") + "\nclass Maker:\n    @staticmethod\n    def make(): return task()\n"
    assert isinstance(load(source, "train:Maker.make"), Task)


def test_a_file_in_a_package_supports_relative_and_sibling_imports(load: Load, tmp_path: Path) -> None:
    (tmp_path / "pkg" / "sub").mkdir(parents=True)
    for folder in ("pkg", "pkg/sub"):
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "pkg" / "beside.py").write_text("x = 1\n")
    (tmp_path / "pkg" / "sub" / "neighbour_of_train.py").write_text("y = 2\n")
    source = "from ..beside import x\nfrom neighbour_of_train import y\n" + GOOD.format(parameters="")
    load(source, "pkg/sub/train.py:task", "pkg/sub/train.py")
    assert "pkg.sub.train" in sys.modules


RELATIVE = "from .model import Net\nfrom . import helper\n" + GOOD.format(parameters="")


def plain_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.py").write_text("import torch\nclass Net(torch.nn.Linear): pass\nclass Base: pass\n")
    (folder / "helper.py").write_text("from .model import Net\nimport model\n")


def test_a_file_in_a_folder_without_init_supports_relative_imports(load: Load, tmp_path: Path) -> None:
    plain_folder(tmp_path / "my-code")
    load(RELATIVE, "my-code/train.py:task", "my-code/train.py")
    assert "my-code.train" in sys.modules
    assert sys.path[0] == str(tmp_path / "my-code")


def test_relative_imports_fail_in_a_folder_named_like_an_installed_module(load: Load, tmp_path: Path) -> None:
    plain_folder(tmp_path / "code")
    with pytest.raises(UserCodeError, match="attempted relative import") as caught:
        load(RELATIVE, "code/train.py:task", "code/train.py")
    assert "another name for the folder: a module code is already installed" in caught.value.try_
    guarded = "try:\n    from .model import Net\nexcept ImportError:\n    from model import Net\n" + GOOD.format(parameters="")
    load(guarded, "code/train.py:task", "code/train.py")


def test_the_file_folder_is_first_and_the_working_directory_last_on_sys_path(load: Load, tmp_path: Path) -> None:
    for folder in (".", "deep"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "both.py").write_text(f"where = {folder!r}\n")
        (tmp_path / folder / "colorsys.py").write_text("where = 'mine'\n")
    sys.modules.pop("colorsys", None)
    load("import both\n" + GOOD.format(parameters=""), "deep/train.py:task", "deep/train.py")
    assert sys.modules["train"].both.where == "deep"
    assert (sys.path[0], sys.path[-1]) == (str(tmp_path / "deep"), str(tmp_path))


def test_a_module_with_the_name_of_its_package_does_not_hide_the_package(load: Load, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("__init__.py", "model.py"):
        (tmp_path / "model" / name).write_text("")
    load(GOOD.format(parameters=""), "model/train.py:task", "model/train.py")
    assert "model.train" in sys.modules


@pytest.mark.parametrize(("spec", "script"), [("deep/train.py:task", "deep/train.py"), ("deep.train:task", "{}/deep/train.py")])
def test_sys_argv_contains_only_the_script_path(load: Load, tmp_path: Path, spec: str, script: str) -> None:
    source = "import argparse, sys\nparser = argparse.ArgumentParser()\nparser.add_argument('--width', default=3)\n"
    source += "arguments = parser.parse_args()\nargv = list(sys.argv)\n" + GOOD.format(parameters="")
    load(source, spec, "deep/train.py")
    module = sys.modules[spec.partition(":")[0].removesuffix(".py").replace("deep/", "")]
    assert module.argv == [script.format(tmp_path)]
    assert module.arguments.width == 3


PARSERS = {
    "argparse": "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--data', required=True)\n"
    "parser.parse_args()\n",
    "click": "import click\n@click.command()\n@click.option('--data', required=True)\ndef main(data): pass\nmain()\n",
}


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_an_error_from_an_argument_parser_suggests_task_args(load: Load, name: str) -> None:
    pytest.importorskip(name)
    with pytest.raises(UserCodeError, match=rf"importing train.py ended in its argument parser, {name}") as caught:
        load(PARSERS[name])
    assert caught.value.known.startswith("sys.argv is ['train.py'],")
    assert "[task.args]" in caught.value.try_
    assert "environment" in caught.value.try_


def test_the_error_for_sys_exit_during_import_suggests_the_main_guard(load: Load) -> None:
    with pytest.raises(UserCodeError, match=r"called sys.exit\(0\)") as caught:
        load("import sys\ndef main(): return 0\nsys.exit(main())\n")
    assert 'if __name__ == "__main__":' in caught.value.try_


def test_loading_a_task_restores_threads_and_signal_handlers(load: Load) -> None:
    threads, handlers = torch.get_num_threads(), {number: signal.getsignal(number) for number in SIGNALS}
    source = "import signal, warnings\nwarnings.simplefilter('error')\nimport torch\n"
    source += f"torch.set_num_threads({threads + 3})\nfor each in range(2): torch.set_num_interop_threads(17)\n"
    source += "signal.signal(signal.SIGTERM, lambda *_: None)\n" + GOOD.format(parameters="")
    interop = torch.set_num_interop_threads
    with pytest.warns(SettingReplaced) as noted:
        load(source)
    assert (torch.get_num_threads(), torch.set_num_interop_threads) == (threads, interop)
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers
    texts = [str(each.message) for each in noted]
    assert [text.partition(",")[0] for text in texts[:2]] == [
        f"train.py sets {threads + 3} threads",
        "train.py sets 17 threads between operators",
    ]
    assert texts[2].startswith("train.py sets a handler of SIGTERM")


@pytest.mark.child
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_find_the_classes_of_a_plain_folder_with_relative_imports(load: Load, tmp_path: Path, method: str) -> None:
    plain_folder(tmp_path / "mine")
    source = RELATIVE + "from .model import Base\nclass Own(Base): pass\nclass Marked(Data):\n    own = Own()\n"
    source += "    def __getitem__(self, index):\n        import sys\n        assert sys.argv == ['mine/train.py'], sys.argv\n"
    source += "        return super().__getitem__(index)\nData = Marked\n"
    source = source.replace("super()", "super(Marked, self)")
    loader = DataLoader(
        load(source, "mine/train.py:task", "mine/train.py").train_data, num_workers=1, multiprocessing_context=method
    )
    assert [batch[0, 0].item() for batch in loader] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.child
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(("spec", "file"), [("deep/train.py:task", "deep/train.py"), ("my-train.py:task", "my-train.py")])
def test_workers_find_the_classes_of_a_file(load: Load, spec: str, file: str, method: str) -> None:
    task = load(GOOD.format(parameters=""), spec, file)
    loader = DataLoader(task.train_data, batch_size=2, num_workers=1, multiprocessing_context=method)
    batches = list(loader)
    assert [batch[:, 0].tolist() for batch in batches] == [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("spec", "what", "try_"),
    [
        ("trian:task", "there is no module trian", "train:task"),
        ("train.sub:task", "there is no module train.sub", ""),
        ("trian.py:task", "there is no file trian.py", "train.py:task"),
        ("train:tsak", "train has no function tsak", "train:task"),
        ("train.py:Maker.make", "train.py has no function Maker.make", "train.py:task"),
        ("train:seen", "train:seen is a list, not a function", "batchcal calibrate train:task"),
        ("train.v2.py:task", "train.v2.py cannot be imported", "train_v2.py"),
        ("random.py:task", "random.py has the same name as another module", "random_task.py"),
    ],
)
def test_a_spec_that_cannot_be_resolved_is_a_usage_error(load: Load, tmp_path: Path, spec: str, what: str, try_: str) -> None:
    for name in ("train.v2.py", "random.py"):
        (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match=what) as caught:
        load(GOOD.format(parameters=""), spec)
    assert caught.value.known
    assert try_ in caught.value.try_


def test_the_error_for_a_module_without_functions_shows_an_example(load: Load) -> None:
    with pytest.raises(UsageError, match=r"train\.py has no function task") as caught:
        load("x = 1\n")
    assert "batchcal.Task(" in caught.value.try_


@pytest.mark.parametrize(
    ("parameters", "arguments", "what", "try_"),
    [
        (
            "width=1, depth=2",
            {"widht": 3},
            r"takes no argument 'widht' \(did you mean width\?\)",
            "width instead of widht below [task.args]",
        ),
        ("width=1", {"zzz": 3}, "takes no argument 'zzz'\n", "remove zzz from [task.args]"),
        ("device", {"zzz": 3}, "takes no argument 'zzz'\n", "remove zzz from [task.args]"),
        ("device", {"device": "cpu"}, "the argument 'device' cannot be set", "--device"),
        ("width", {}, "needs an argument 'width'", "width = ... below [task.args]"),
        ("width, /", {"width": 3}, "takes no argument 'width'", "remove width from [task.args]"),
        ("width, /", {}, "needs an argument 'width'", "width"),
    ],
)
def test_the_error_for_invalid_factory_arguments_names_them(
    load: Load, parameters: str, arguments: dict[str, Scalar], what: str, try_: str
) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        load(GOOD.format(parameters=parameters), **arguments)
    assert try_ in caught.value.try_


RAISES = "def inner():\n    raise ValueError('no such width')\ndef task():\n    inner()\n"


def test_the_traceback_of_a_factory_contains_only_user_code(load: Load, tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match=r"train\.py:task raised ValueError: no such width") as caught:
        load(RAISES)
    text = caught.value.known
    assert f'File "{tmp_path}/train.py", line 4, in task' in text
    assert "in inner" in text
    assert text.endswith("ValueError: no such width")
    assert "load.py" not in text
    assert isinstance(caught.value.__cause__, ValueError)  # what kind it was is not lost: it may be memory that ran out


def test_the_error_of_a_factory_shows_its_cause(load: Load) -> None:
    source = (
        "def task():\n    try:\n        int('x')\n    except ValueError as error:\n        raise KeyError('outer') from error\n"
    )
    with pytest.raises(UserCodeError) as caught:
        load(source)
    assert "invalid literal for int()" in caught.value.known
    assert "direct cause" in caught.value.known


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import sys\ndef task(): sys.exit(3)\n", r"train.py:task called sys.exit\(3\)"),
        ("import sys\nsys.exit('bye')\n", r"importing train.py called sys.exit\('bye'\)"),
        ("1 / 0\n", "importing train.py raised ZeroDivisionError: division by zero"),
        ("def task(:\n", "train.py is not valid Python: invalid syntax"),
        (
            "class E(Exception):\n    def __str__(self): raise E\ndef task(): raise E()\n",
            r"train.py:task raised train.E: \(the text of the error could not be read: E\)\n",
        ),
        ("def task(): return task()\n", "train.py:task raised RecursionError"),
        ("task = type\n", "train.py:task raised TypeError"),
        ("def task(): return 42\n", "train.py:task returned 42"),
        ("def task(): pass\n", "train.py:task returned None"),
        ("async def task(): pass\n", "train.py:task returned a coroutine"),
        (
            GOOD.format(parameters="") + "Made = task().__class__\ndef task(): return Made\n",
            "train.py:task returned the class Task",
        ),
    ],
)
def test_failing_task_code_is_a_user_error(load: Load, source: str, what: str) -> None:
    with pytest.raises(UserCodeError, match=what) as caught:
        load(source)
    assert caught.value.known
    assert caught.value.try_


def test_a_cyclic_exception_context_is_shown_once(load: Load) -> None:
    source = "def task():\n    a, b = ValueError('a'), ValueError('b')\n    a.__context__, b.__context__ = b, a\n    raise a\n"
    with pytest.raises(UserCodeError, match="raised ValueError: a"):
        load(source)


@pytest.mark.parametrize("spec", ["train:task", "train.py:task"])
def test_a_missing_import_in_the_task_is_a_user_error(load: Load, spec: str) -> None:
    with pytest.raises(UserCodeError, match="No module named 'absent_thing'") as caught:
        load("import absent_thing.part\n", spec)
    assert "install absent_thing" in caught.value.try_
    assert 'train.py", line 1' in caught.value.known


def test_a_module_that_imports_its_own_missing_submodule_is_a_user_error(load: Load) -> None:
    with pytest.raises(UserCodeError, match="raised ModuleNotFoundError"):
        load("import train.part\n", "train:task")


def test_a_usage_error_of_the_task_is_propagated(load: Load) -> None:
    source = "from batchcal.core.errors import UsageError\n"
    with pytest.raises(UsageError, match="odd width"):
        load(source + "def task(): raise UsageError('odd width')\n")
    for spec, file in (("second:task", "second.py"), ("third.py:task", "third.py")):
        with pytest.raises(UsageError, match="no data"):
            load(source + "raise UsageError('no data')\n", spec, file)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ("model=len", "model is a builtin_function_or_method"),
        ("optimizer=None", "optimizer is None"),
        ("train_data=3", "train_data is 3"),
        ("loss=0.5", "loss is 0.5"),
        ("model=nn.Linear(3, 1, device='meta')", "model is on the device 'meta'"),
        ("optimizer=torch.optim.SGD(nn.Linear(3, 1).parameters(), lr=0.1)", "optimizer holds none of the model's parameters"),
    ],
)
def test_a_task_that_cannot_be_trained_is_rejected_when_loaded(load: Load, changed: str, what: str) -> None:
    source = (
        GOOD.format(parameters="")
        + f"import dataclasses\nmade = task()\ndef task(): return dataclasses.replace(made, {changed})\n"
    )
    with pytest.raises(UserCodeError, match=what) as caught:
        load(source)
    assert caught.value.known
    assert caught.value.try_
