"""Whatever a user's module or factory does, the answer is a Task or an error that shows his own code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.workload.load import load_task
from batchcal.workload.reference import Scalar, TaskReference
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
    modules, path = dict(sys.modules), list(sys.path)

    def loading(source: str, spec: str = "train.py:task", file: str = "train.py", **arguments: Scalar) -> Task:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(source)
        importlib.invalidate_caches()
        return load_task(TaskReference(spec=spec, directory=str(tmp_path), arguments=arguments), device="cpu")

    yield loading
    sys.path[:] = path
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
def test_a_module_or_a_file_is_loaded(load: Load, spec: str, file: str) -> None:
    sample = load(GOOD.format(parameters=""), spec, file).train_data[0]
    assert isinstance(sample, torch.Tensor)


def test_a_factory_gets_what_its_signature_names_and_no_more(load: Load) -> None:
    load(GOOD.format(parameters="device, width=1, *, depth=2"), width=5)
    assert seen() == {"device": torch.device("cpu"), "width": 5, "depth": 2}
    load(GOOD.format(parameters="**rest"), "any:task", "any.py", width=5)
    assert seen("any") == {"rest": {"width": 5}}


def test_a_class_method_may_be_the_factory(load: Load) -> None:
    source = GOOD.format(parameters="") + "\nclass Maker:\n    @staticmethod\n    def make(): return task()\n"
    assert isinstance(load(source, "train:Maker.make"), Task)


def test_a_file_in_a_package_may_import_relatively_and_its_neighbours(load: Load, tmp_path: Path) -> None:
    (tmp_path / "pkg" / "sub").mkdir(parents=True)
    for folder in ("pkg", "pkg/sub"):
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "pkg" / "beside.py").write_text("x = 1\n")
    (tmp_path / "pkg" / "sub" / "neighbour_of_train.py").write_text("y = 2\n")
    source = "from ..beside import x\nfrom neighbour_of_train import y\n" + GOOD.format(parameters="")
    load(source, "pkg/sub/train.py:task", "pkg/sub/train.py")
    assert "pkg.sub.train" in sys.modules


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
        ("train:tsak", "train has no tsak", "train:task"),
        ("train.py:Maker.make", "train.py has no Maker.make", "train.py:task"),
        ("train:seen", "train:seen is a list, not a function", "def task(device)"),
        ("train.v2.py:task", "train.v2.py cannot be imported", "train_v2.py"),
        ("random.py:task", "random.py has the name of another module", "random_task.py"),
    ],
)
def test_a_spec_that_leads_nowhere_is_the_users_spec_not_his_code(
    load: Load, tmp_path: Path, spec: str, what: str, try_: str
) -> None:
    for name in ("train.v2.py", "random.py"):
        (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match=what) as caught:
        load(GOOD.format(parameters=""), spec)
    assert caught.value.known
    assert try_ in caught.value.try_


def test_a_module_without_functions_says_what_to_write(load: Load) -> None:
    with pytest.raises(UsageError, match=r"train\.py has no task") as caught:
        load("x = 1\n")
    assert "batchcal.Task(" in caught.value.try_


@pytest.mark.parametrize(
    ("parameters", "arguments", "what", "try_"),
    [
        ("width=1, depth=2", {"widht": 3}, r"takes no argument 'widht' \(did you mean 'width'\?\)", "[task.args] width"),
        ("width=1", {"zzz": 3}, "takes no argument 'zzz'\n", "width"),
        ("device", {"zzz": 3}, "takes no argument 'zzz'\n", "leave zzz out"),
        ("device", {"device": "cpu"}, "'device' is batchcal's to give", "--device"),
        ("width", {}, "needs an argument 'width'", "[task.args] width"),
        ("width, /", {"width": 3}, "takes no argument 'width'", "leave width out"),
        ("width, /", {}, "needs an argument 'width'", "width"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    load: Load, parameters: str, arguments: dict[str, Scalar], what: str, try_: str
) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        load(GOOD.format(parameters=parameters), **arguments)
    assert try_ in caught.value.try_


RAISES = "def inner():\n    raise ValueError('no such width')\ndef task():\n    inner()\n"


def test_a_factory_that_raises_shows_its_own_traceback_and_none_of_ours(load: Load, tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match=r"train\.py:task raised ValueError: no such width") as caught:
        load(RAISES)
    text = caught.value.known
    assert f'File "{tmp_path}/train.py", line 4, in task' in text
    assert "in inner" in text
    assert text.endswith("ValueError: no such width")
    assert "load.py" not in text
    assert isinstance(caught.value.__cause__, ValueError)  # what kind it was is not lost: it may be memory that ran out


def test_where_an_error_came_from_is_shown_too(load: Load) -> None:
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
        ("def task(:\n", "importing train.py raised SyntaxError"),
        ("class E(Exception):\n    def __str__(self): raise E\ndef task(): raise E()\n", "train.py:task raised E\n"),
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
def test_code_that_fails_is_the_users(load: Load, source: str, what: str) -> None:
    with pytest.raises(UserCodeError, match=what) as caught:
        load(source)
    assert caught.value.known
    assert caught.value.try_


def test_errors_that_came_from_each_other_are_shown_once(load: Load) -> None:
    source = "def task():\n    a, b = ValueError('a'), ValueError('b')\n    a.__context__, b.__context__ = b, a\n    raise a\n"
    with pytest.raises(UserCodeError, match="raised ValueError: a"):
        load(source)


@pytest.mark.parametrize("spec", ["train:task", "train.py:task"])
def test_a_module_that_the_users_code_lacks_is_not_the_specs(load: Load, spec: str) -> None:
    with pytest.raises(UserCodeError, match="No module named 'absent_thing'") as caught:
        load("import absent_thing.part\n", spec)
    assert "install absent_thing" in caught.value.try_
    assert 'train.py", line 1' in caught.value.known


def test_a_module_that_imports_its_own_missing_part_is_the_users(load: Load) -> None:
    with pytest.raises(UserCodeError, match="raised ModuleNotFoundError"):
        load("import train.part\n", "train:task")


def test_a_usage_error_of_the_task_is_let_pass(load: Load) -> None:
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
        ("optimizer=torch.optim.SGD(nn.Linear(3, 1).parameters(), lr=0.1)", "optimizer holds none of the model's parameters"),
    ],
)
def test_a_task_that_cannot_be_trained_is_refused_at_once(load: Load, changed: str, what: str) -> None:
    source = (
        GOOD.format(parameters="")
        + f"import dataclasses\nmade = task()\ndef task(): return dataclasses.replace(made, {changed})\n"
    )
    with pytest.raises(UserCodeError, match=what) as caught:
        load(source)
    assert caught.value.known
    assert caught.value.try_
