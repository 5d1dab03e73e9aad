"""What only torch can tell, asked in a child."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from batchcal.core.errors import GuardError
from batchcal.detect.environment import ThreadPool
from batchcal.detect.thread_pools import can_query, pools_of
from batchcal.detect.torch_answer import TorchAnswer, query_torch_in_child
from batchcal.guard import call as guard_call


@pytest.mark.smoke("job:batchcal.detect.torch_answer:query_torch")
@pytest.mark.child
def test_a_child_reports_devices_and_thread_pools_of_torch() -> None:
    answer = query_torch_in_child()
    assert answer.problems == ()
    assert can_query()
    libraries = {pool.library for pool in answer.thread_pools}
    assert any("omp" in library for library in libraries)
    assert any("openblas" in library or "mkl" in library for library in libraries)
    assert all(device.total_bytes >= device.free_bytes for device in answer.accelerators)


@pytest.mark.child
@pytest.mark.gpu
def test_a_real_accelerator_is_described() -> None:
    answer = query_torch_in_child()
    assert answer.accelerators
    for device in answer.accelerators:
        assert 0 < device.free_bytes <= device.total_bytes
        assert device.name
    assert answer.cuda or answer.accelerators[0].kind != "cuda"


@pytest.mark.parametrize("reply", [None, 3, {"accelerators": 5}, {"unheard": 1}])
def test_an_invalid_torch_answer_raises_guard_error(reply: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_call, "call", lambda function, *, timeout_s: reply)
    with pytest.raises(GuardError, match="invalid result"):
        query_torch_in_child()


def test_a_torch_answer_is_unchanged_by_a_json_round_trip() -> None:
    answer = TorchAnswer(thread_pools=(ThreadPool(library="libgomp", threads=2),), cuda="12.8", problems=("cuda:0 is away",))
    assert TorchAnswer.model_validate(answer.model_dump(mode="json")) == answer


def test_thread_pools_without_a_name_or_a_count_are_ignored() -> None:
    entries: list[Mapping[str, object]] = [
        {"prefix": "libgomp", "num_threads": 2, "version": None},
        {"prefix": "libmkl_rt", "num_threads": 4, "version": "2024.1"},
        {"prefix": None, "num_threads": 4},
        {"prefix": "libblis"},
    ]
    assert pools_of(entries) == (
        ThreadPool(library="libgomp", threads=2),
        ThreadPool(library="libmkl_rt", threads=4, version="2024.1"),
    )
