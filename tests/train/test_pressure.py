"""Real limits, real memory: a training in a container that becomes smaller."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.pressure import apart, lowered_limit, run
from tests.support.cgroups import needs_memory_cgroup


@pytest.mark.cgroup
@pytest.mark.slow
@needs_memory_cgroup
def test_a_training_survives_a_lowered_memory_limit_with_the_same_parameters(tmp_path: Path) -> None:
    undisturbed, lowered = tmp_path / "undisturbed.pt", tmp_path / "lowered.pt"
    calm = run(4 << 30, undisturbed, steps=5)
    assert calm.exit_code == 0, calm.errors
    found = run(int(calm.peak * 1.3), lowered, steps=5, base=calm.base, peak=calm.peak, lower_to=lowered_limit(calm))
    assert (found.exit_code, found.oom_kills) == (0, 0), found.errors
    assert found.lowered_after is not None
    assert found.resized >= 1
    assert found.samples == calm.samples
    assert apart(undisturbed, lowered) < 1e-9


LIMITED = """
import resource
import sys
from batchcal.guard.limits.fence import OwnDataLimit
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), resource.RLIM_INFINITY))
before = resource.getrlimit(resource.RLIMIT_DATA)
fence = OwnDataLimit()
assert fence.hold(32 << 20)
try:
    held = bytearray(200 << 20)
except MemoryError:
    print("refused")
assert fence.hold(8 << 40)
assert resource.getrlimit(resource.RLIMIT_DATA)[0] <= before[0], "never above what was there"
held = bytearray(200 << 20)
fence.lift()
assert resource.getrlimit(resource.RLIMIT_DATA) == before
print("lifted")
"""


@pytest.mark.child
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
@pytest.mark.parametrize("limit", [1 << 40, 2 << 30])
def test_the_data_limit_of_this_process_is_set_raised_and_restored(limit: int) -> None:
    ended = subprocess.run([sys.executable, "-c", LIMITED, str(limit)], capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["refused", "lifted"], ended.stderr
