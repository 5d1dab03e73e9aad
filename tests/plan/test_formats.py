"""What other programs read. The shell lines are read by a real shell."""

from __future__ import annotations

import json
import subprocess

import pytest

from batchcal.core.errors import UsageError
from batchcal.plan.formats import as_dotenv, as_json, as_sh, exported, failure_sh
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from tests.support.calibrations import a_calibration

PRELOAD = {"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4:/usr/lib/other.so"}


def a_plan(effective_batch: int = 1000) -> Plan:
    return make_plan(a_calibration(), effective_batch=effective_batch)


def sh(script: str, *, shell: str = "sh") -> subprocess.CompletedProcess[str]:
    return subprocess.run([shell, "-c", script], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=False)


def test_the_json_of_a_plan_has_all_documented_keys_and_loads_back() -> None:
    document = json.loads(as_json(a_plan()))
    contracted = {
        "format", "status", "micro_batch", "accumulation_steps", "effective_batch", "micro_batches", "eval_batch", "num_workers",
        "prefetch_factor", "pin_memory", "persistent_workers", "multiprocessing_context", "intra_op_threads", "interop_threads",
        "allocator", "predicted_peak_bytes", "budget_bytes", "predicted_samples_per_s", "world_size", "objective", "limited_by",
    }  # fmt: skip
    assert contracted <= set(document)
    assert document["micro_batches"] == [500, 500]
    assert Plan.model_validate_json(as_json(a_plan())) == a_plan()


def test_plan_keys_threads_and_allocator_are_exported_as_environment_variables() -> None:
    variables = exported(a_plan(), PRELOAD)
    assert variables["BATCHCAL_PLAN_MICRO_BATCH"] == "500"
    assert variables["BATCHCAL_PLAN_MICRO_BATCHES"] == "500,500"
    assert variables["BATCHCAL_PLAN_PIN_MEMORY"] == "false"
    assert variables["BATCHCAL_PLAN_PREFETCH_FACTOR"] == ""
    assert variables["BATCHCAL_PLAN_STATUS"] == "derived"
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["LD_PRELOAD"] == PRELOAD["LD_PRELOAD"]
    assert not any("WHY" in name or "NOTICES" in name for name in variables)


@pytest.mark.child
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_shell_reads_the_exported_values(shell: str) -> None:
    lines = as_sh(a_plan(), {})
    shown = sh(f"set -e; eval \"$(cat <<'END'\n{lines}END\n)\"; env", shell=shell)
    assert shown.returncode == 0, shown.stderr
    seen = dict(line.split("=", 1) for line in shown.stdout.splitlines())
    assert exported(a_plan(), {}).items() <= seen.items()


@pytest.mark.child
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_failure_stops_a_shell_script_that_evaluates_the_output(shell: str) -> None:
    stopped = sh(f'set -e; eval "$(printf %s {failure_sh(3).strip()!r})"; echo went on', shell=shell)
    assert (stopped.returncode, stopped.stdout) == (3, "")
    asked = sh(f'eval "$(printf %s {failure_sh(3).strip()!r})"; echo $?', shell=shell)
    assert asked.stdout == "3\n"


@pytest.mark.child
def test_a_sourced_dotenv_file_sets_the_same_variables_as_the_exports() -> None:
    shown = sh(f"set -a; . /dev/stdin <<'END'\n{as_dotenv(a_plan(), PRELOAD)}END\nunset LD_PRELOAD; env")
    seen = dict(line.split("=", 1) for line in shown.stdout.splitlines())
    assert exported(a_plan(), {}).items() <= seen.items()


def test_dotenv_lines_contain_no_quotes() -> None:
    text = as_dotenv(a_plan(), PRELOAD)
    assert "'" not in text
    assert '"' not in text
    assert "BATCHCAL_PLAN_ALLOCATOR=default\n" in text


@pytest.mark.parametrize("value", ["/opt/my libs/libjemalloc.so", "a'b", 'a"b', "$(reboot)", "a;b", "a\nb", "`x`", "a\\b"])
def test_a_value_that_shells_and_env_files_read_differently_is_refused(value: str) -> None:
    for form in (as_sh, as_dotenv):
        with pytest.raises(UsageError, match="LD_PRELOAD") as caught:
            form(a_plan(), {"LD_PRELOAD": value})
        assert repr(value) in caught.value.known


def test_exported_rates_are_rounded_and_unknown_rates_are_empty() -> None:
    value = exported(a_plan(), {})["BATCHCAL_PLAN_PREDICTED_SAMPLES_PER_S"]
    assert float(value) == pytest.approx(a_plan().predicted_samples_per_s, rel=1e-4)
    assert exported(a_plan(3), {})["BATCHCAL_PLAN_PREDICTED_SAMPLES_PER_S"] == ""
