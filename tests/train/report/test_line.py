"""One event as one line of JSON, whatever its fields hold."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcal.core.progress import Field
from batchcal.train.report import line as module
from batchcal.train.report.line import line_of

KEYS = st.text(max_size=12).filter(lambda key: key not in {"event", "at", "not_finite"})
VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12)


def read(line: bytes) -> dict[str, object]:
    """Refuses what JSON does not have."""

    def refuse(name: str) -> float:
        raise AssertionError(name)

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found: object = json.loads(line, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def test_a_step_is_one_line_with_its_name_and_time_first() -> None:
    line = line_of("step", 12.3456789, {"epoch": 1, "loss": 0.1 + 0.2, "peak_bytes": 123456789012})
    assert line == b'{"event":"step","at":12.345679,"epoch":1,"loss":0.3,"peak_bytes":123456789012}\n'


def test_fields_with_none_are_omitted() -> None:
    assert line_of("step", 0, {"a": None, "b": 1, "c": None}) == b'{"event":"step","at":0.000000,"b":1}\n'


@pytest.mark.parametrize(("value", "said"), [(math.nan, "loss=nan"), (math.inf, "loss=inf"), (-math.inf, "loss=-inf")])
def test_nan_and_infinity_are_written_as_null_and_listed(value: float, said: str) -> None:
    found = read(line_of("step", 1.0, {"loss": value, "lr": 0.5}))
    assert (found["loss"], found["lr"], found["not_finite"]) == (None, 0.5, said)


def test_task_names_that_contain_nan_or_inf_are_not_changed() -> None:
    fields: dict[str, Field] = {"loss_finance": 0.5, "loss_info": 2.5, "samples": 3}
    assert read(line_of("step", 1.0, fields)) == {"event": "step", "at": 1.0, **fields}


def test_special_characters_in_names_do_not_break_the_line() -> None:
    fields: dict[str, Field] = {'loss_a"b': 1.5, "loss_100%s": 2.5, "x\n": 3}
    assert read(line_of("st%ep", 0.5, fields)) == {"event": "st%ep", "at": 0.5, **fields}


def test_a_lone_surrogate_is_not_written_to_the_file() -> None:
    assert read(line_of("checkpoint_saved", 0, {"path": "caf\udce9"}))["path"] != "caf\udce9"
    line_of("step", 0, {"loss_caf\udce9": 1.0}).decode()


def test_floats_keep_float32_precision() -> None:
    for number in (1 / 3, 1e-30, 123456.789):
        told = float(str(read(line_of("step", 0, {"loss": number}))["loss"]))
        assert told == pytest.approx(number, rel=1e-8)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_fields_produce_a_readable_line(fields: dict[str, Field]) -> None:
    found = read(line_of("step", 3.5, fields))
    for key, value in fields.items():
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            assert found.get(key) is None
        elif isinstance(value, float):
            assert found[key] == pytest.approx(value, rel=1e-8)
        elif isinstance(value, str):
            assert found[key] == value.encode("utf-8", "replace").decode()
        else:
            assert found[key] == value


def test_steps_with_many_different_field_names_do_not_fill_the_memory() -> None:
    for place in range(1000):
        line_of("step", 0, {f"loss_{place}": 1.0})
    assert len(module._templates) <= 256
    assert read(line_of("step", 0, {"loss_1001": 1.0}))["loss_1001"] == 1.0
