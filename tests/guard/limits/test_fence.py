"""RLIMIT_DATA around a real process, and what dead processes leave in /dev/shm."""

from __future__ import annotations

import os
import resource
import sys

import pytest

from batchcal.core.units import MIB
from batchcal.guard.limits.fence import SLACK_BYTES, arm_data_limit, data_limit_holds
from batchcal.machine.meters import read_status

NOBODY = 2**22 + 7


def allocated(mib: int) -> bool:
    try:
        bytearray(mib * MIB)
    except MemoryError:
        return False
    return True


@pytest.mark.child
def test_the_fence_allows_memory_up_to_its_limit_and_no_more() -> None:
    """Fenced from outside, as a probe is."""
    go_read, go = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(go_read, 1)
            verdict = [allocated(40), data_limit_holds(), allocated(400), allocated(40)]
            os.write(tell, repr(verdict).encode())
        finally:
            os._exit(0)
    holds = read_status(child)
    assert holds is not None
    assert arm_data_limit(child, holds.hard_bytes + 100 * MIB)
    os.write(go, b"x")
    answer = os.read(told, 200).decode()
    os.waitpid(child, 0)
    for descriptor in (go_read, go, told, tell):
        os.close(descriptor)
    assert answer == "[True, True, False, True]"


@pytest.mark.child
def test_a_fence_below_current_usage_is_raised_to_the_usage() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read, 1)
        os._exit(0)
    holds = read_status(child)
    assert holds is not None
    assert arm_data_limit(child, 1)
    soft, hard = resource.prlimit(child, resource.RLIMIT_DATA)
    assert soft == hard
    assert holds.data_bytes <= soft <= holds.data_bytes + SLACK_BYTES + MIB
    os.write(write, b"x")
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)


def test_a_process_that_is_gone_cannot_be_fenced() -> None:
    assert not arm_data_limit(NOBODY, 100 * MIB)


def test_a_system_without_rlimit_data_has_no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not arm_data_limit(os.getpid(), 1 << 40)


def test_the_fence_is_unavailable_if_prlimit_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, what: int, limits: tuple[int, int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(resource, "prlimit", refuse)
    assert not arm_data_limit(os.getpid(), 1 << 40)


def test_an_unlimited_process_has_no_enforced_data_limit() -> None:
    if resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY:
        pytest.skip("this process has a data limit")
    assert not data_limit_holds()


def test_a_data_limit_that_the_kernel_ignores_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ignore_rlimit_data: the limit is there and a mapping as large passes."""
    monkeypatch.setattr(resource, "getrlimit", lambda what: (64 * MIB, 64 * MIB))
    assert not data_limit_holds()
