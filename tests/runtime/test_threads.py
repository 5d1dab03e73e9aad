"""Thread counts can be set once in a process, so each case has a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from batchcal.core.errors import UsageError
from batchcal.runtime.threads import apply_threads

pytestmark = pytest.mark.child


def in_a_child(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.smoke
def test_both_thread_counts_take_effect_and_can_be_set_repeatedly() -> None:
    out = in_a_child(
        "import torch\n"
        "from batchcal.runtime.threads import apply_threads\n"
        "for _ in range(3): apply_threads(1, 3)\n"
        "apply_threads(2, 3)\n"
        "print(torch.get_num_threads(), torch.get_num_interop_threads())"
    )
    assert out.split() == ["2", "3"]


def test_a_second_interop_thread_count_is_rejected() -> None:
    out = in_a_child(
        "from batchcal.core.errors import UsageError\n"
        "from batchcal.runtime.threads import apply_threads\n"
        "apply_threads(1, 3)\n"
        "try: apply_threads(1, 5)\n"
        "except UsageError as error: print(error)"
    )
    assert "already uses 3 threads between operators, so 5 can no longer be set" in out
    assert "batchcal.apply(plan) before any other use" in out


@pytest.mark.parametrize(("intra", "inter"), [(0, 1), (1, 0), (-2, 1)])
def test_less_than_one_thread_is_refused(intra: int, inter: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        apply_threads(intra, inter)
