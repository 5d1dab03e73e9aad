"""The command line in this process: what it prints where, its exit codes, its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from batchcal.__main__ import main
from batchcal.calibration.records.undone import Undone
from batchcal.calibration.schema import Budget
from batchcal.cli.app import VERBS, app_with
from batchcal.core.errors import UsageError
from batchcal.core.units import GIB
from batchcal.measure.result import CalibrationResult
from batchcal.plan.load import load_plan
from tests.cli.conftest import Calibrated
from tests.support.calibrations import a_calibration

# Adding an option is a decision: it is here, in the README and in CHANGELOG.md.
OPTIONS = {
    "detect": "--json --quiet/-q --verbose/-v",
    "calibrate": (
        "--accept-inexact --activation-checkpointing --allocator --attribute --config --device --dry-run --effective-batch "
        "--force --headroom --json --margin --max-batch --max-probes --memory-limit --min-micro-batch --multiple-of "
        "--objective --output --pipeline-only --quiet/-q --require-signature --samples --seed --shape --time-limit "
        "--verbose/-v --workers"
    ),
    "show": "--check --html --json --quiet/-q --require-settled --require-signature --verbose/-v --why",
    "plan": (
        "--accept-inexact --allocator --calibration --config --device --effective-batch --format --json "
        "--min-micro-batch --objective --quiet/-q --require-settled --require-signature --shapes --verbose/-v --what-if "
        "--world-size"
    ),
    "train": (
        "--accept-inexact --activation-checkpointing --allocator --calibrate --calibration-samples --checkpoint "
        "--checkpoint-every --config --device --drop-last --effective-batch --epochs --force-calibration --json --log "
        "--margin --max-batch --max-steps --memory-limit --min-micro-batch --no-checkpoint --objective --on-oom --output "
        "--patience --quiet/-q --require-settled --require-signature --resume --seed --start-micro-batch "
        "--time-limit --verbose/-v --workers"
    ),
    "exec": (
        "--accept-inexact --allocator --calibration --config --device --effective-batch --min-micro-batch --objective "
        "--on-stale --quiet/-q --require-settled --require-signature --verbose/-v --world-size"
    ),
    "hpo run": "--json --matrix --quiet/-q --set --verbose/-v --workers --write-configs",
    "hpo status": "--json --quiet/-q --set --verbose/-v",
    "hpo best": "--json --quiet/-q --set --train --verbose/-v",
}


def commands() -> dict[str, dict[str, str]]:
    """By verb: its options with their help."""
    return _below(typer.main.get_command(app_with(*VERBS)), "")


def _below(group: object, path: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    verbs: object = getattr(group, "commands", {})
    assert isinstance(verbs, dict)
    for name, command in verbs.items():
        if getattr(command, "commands", None):
            found |= _below(command, f"{path}{name} ")
            continue
        options = (one for one in command.params if one.param_type_name == "option")
        found[path + name] = {"/".join(sorted(one.opts, key=len, reverse=True)): str(one.help or "") for one in options}
    return found


def test_the_options_of_every_verb_match_the_frozen_list() -> None:
    assert {verb: " ".join(sorted(options)) for verb, options in commands().items()} == OPTIONS


def test_every_verb_and_every_option_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, options in commands().items():
        assert [name for name, told in options.items() if not told] == [], verb
        assert main([*verb.split(), "-h"]) == 0
        out, err = capsys.readouterr()
        assert f"batchcal {verb}" in out
        assert err == ""


@pytest.mark.parametrize(
    ("verb", "default"),
    [
        ("calibrate", "(default: 60s)"),
        ("train", "(default: 10m)"),
        ("plan", "(default: table)"),
        ("plan", "(default: throughput)"),
    ],
)
def test_the_help_shows_defaults(
    verb: str, default: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rich takes text in square brackets for markup: `[default: 60s]` was never printed."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main([verb, "-h"]) == 0
    assert default in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["hpo"]])
def test_the_help_is_shown_when_the_verb_is_missing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert " ".join(["Usage: batchcal", *arguments]) in out
    assert err == ""


def test_the_version_output_shows_the_torch_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("batchcal 0.1.0, torch 2.")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["calibrat"], "no such command 'calibrat'. Did you mean 'calibrate'?"),
        (["show", "--bogus"], "no such option: --bogus"),
        (["plan", "--world-size", "none"], "invalid value for '--world-size'"),
        (["plan", "--format", "yaml"], "--format 'yaml' is not valid"),
        (["plan", "--what-if", "1GiB", "--effective-batch", "none"], "effective-batch 'none' is not a whole number"),
        (["plan", "--objective", "speed"], "objective 'speed' is not valid"),
        (["calibrate", "--pipeline-only", "--dry-run", "task.py:task"], "--pipeline-only and --dry-run contradict each other"),
        (["calibrate", "--memory-limit", "2g", "task.py:task"], "memory-limit '2g' is ambiguous"),
        (["calibrate", "absent.py:task"], "absent.py"),
        (["train", "--resume", "--no-checkpoint", "task.py:task"], "--no-checkpoint contradicts --resume"),
        (["train", "--checkpoint", "task.py", "task.py:task"], "task.py is an existing file that is not a checkpoint"),
        (["calibrate", "task.py:task", "--config", "absent.toml"], "there is no file"),
    ],
)
def test_a_usage_error_prints_error_and_try_lines_and_exits_with_code_2(
    arguments: list[str], says: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ("(exit 2)\n" if "sh" in arguments else "")
    assert err.startswith("error: ")
    assert says in err
    assert "  try: " in err


def test_an_unknown_config_key_gets_a_suggestion(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "x.toml").write_text('[task]\nspec = "task.py:task"\n[calibrate]\nmemory_limt = "2GiB"\n')
    assert main(["calibrate", "x.toml"]) == 2
    assert "x.toml: unknown key 'memory_limt' in [calibrate] (did you mean memory_limit?)" in capsys.readouterr().err


def test_the_error_for_a_missing_task_shows_how_to_specify_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("error: no task is given")
    assert "batchcal calibrate train.py:task" in lines[2]


def test_the_project_search_stops_at_the_repository_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "batchcal.toml").write_text('[task]\nspec = "absent.py:task"\n')
    inner = tmp_path / "repository" / "below"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert main(["calibrate"]) == 2
    assert "absent.py" in capsys.readouterr().err
    (tmp_path / "repository" / ".git").mkdir()
    assert main(["calibrate"]) == 2
    assert "no task is given" in capsys.readouterr().err


def test_plan_warns_about_a_misspelled_environment_variable(
    calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated()
    monkeypatch.setenv("BATCHCAL_MARGN", "1%")
    assert main(["plan"]) == 0
    assert "BATCHCAL_MARGN is not known (did you mean BATCHCAL_MARGIN?)" in capsys.readouterr().err


def test_verbose_shows_the_source_of_a_setting(
    calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated()
    monkeypatch.setenv("BATCHCAL_EFFECTIVE_BATCH", "1024")
    assert main(["plan", "-v", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["effective_batch"] == 1024
    assert 'setting name=plan.effective_batch value=1024 origin="env BATCHCAL_EFFECTIVE_BATCH"' in err


def test_calibrate_reuses_a_valid_calibration(calibrated: Calibrated, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_effective_batch(project)
    made = calibrated()
    assert main(["calibrate", "--allocator", "default"]) == 0
    out, err = capsys.readouterr()
    assert "train  512" in out
    assert "the existing calibration is still valid; --force measures again" in err
    assert main(["calibrate", "--allocator", "default", "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["kind"], document["fresh"], document["measured"]) == ("calibration-view", True, False)
    assert document["calibration"]["created_at"] == made.model_dump(mode="json")["created_at"]
    assert err == ""


def without_effective_batch(project: Path) -> None:
    (project / "batchcal.toml").write_text('[task]\nspec = "task.py:task"\n')


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--json"],
        ["plan", "--format", "json"],
        ["plan", "--format", "sh"],
        ["plan", "--format", "dotenv"],
        ["train", "--allocator", "default", "--no-calibrate"],
        ["exec", "--", "true"],
        ["exec", "--on-stale", "default", "--", "true"],
    ],
)
def test_commands_used_for_training_require_an_effective_batch(
    arguments: list[str], calibrated: Calibrated, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_effective_batch(project)
    calibrated()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ("(exit 2)\n" if "sh" in arguments else "")
    assert "the effective batch (samples per optimizer step) is not set" in err
    assert "--effective-batch 512" in err


def test_the_plan_table_works_without_an_effective_batch_and_notes_it(
    calibrated: Calibrated, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_effective_batch(project)
    calibrated()
    assert main(["plan"]) == 0
    assert "the effective batch is not set: this plan uses the fastest micro-batch" in " ".join(capsys.readouterr().out.split())
    for arguments in (["show"], ["calibrate", "--allocator", "default"]):
        assert main(arguments) == 0
        assert "effective batch not set" in capsys.readouterr().out
    assert main(["show", "--json"]) == 0
    assert any("effective batch not set" in text for text in json.loads(capsys.readouterr().out)["notices"])


def test_the_effective_batch_is_read_from_flag_variable_file_then_task(
    calibrated: Calibrated, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(*arguments: str) -> int:
        assert main(["plan", "--json", *arguments]) == 0
        effective: object = json.loads(capsys.readouterr().out)["effective_batch"]
        assert isinstance(effective, int)
        return effective

    facts = a_calibration().facts
    assert facts is not None
    calibrated(facts=facts.model_copy(update={"effective_batch": 24}))
    monkeypatch.setenv("BATCHCAL_EFFECTIVE_BATCH", "48")
    assert planned("--effective-batch", "64") == 64
    assert planned() == load_plan().effective_batch == 48
    monkeypatch.delenv("BATCHCAL_EFFECTIVE_BATCH")
    assert planned() == load_plan().effective_batch == 96
    without_effective_batch(project)
    assert planned() == load_plan().effective_batch == 24
    calibrated(effective_batch=1000)
    with pytest.raises(UsageError) as error:
        load_plan()
    assert "--effective-batch 1000" in error.value.try_


def test_a_plan_reads_device_and_allocator_from_variables_and_files(
    calibrated: Calibrated, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated()
    monkeypatch.setenv("BATCHCAL_ALLOCATOR", "retain")
    assert main(["plan"]) == 3
    assert "nothing was verified for cpu with retain" in capsys.readouterr().err.replace("allocator ", "")
    assert main(["plan", "--allocator", "default"]) == 0
    monkeypatch.delenv("BATCHCAL_ALLOCATOR")
    (project / "x.toml").write_text('[calibrate]\ndevice = "cuda"\n')
    assert main(["plan", "--config", "x.toml"]) == 3
    assert "nothing was verified for cuda" in capsys.readouterr().err


def test_a_dry_run_starts_no_child_and_writes_no_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--dry-run", "--memory-limit", "1GiB"]) == 0
    out, err = capsys.readouterr()
    assert "not saved" in out
    assert "assumed 20" in out
    assert "predicted: this is a dry run. Memory and speed are assumed" in out
    assert "verified" not in out
    assert "probe_started sequence=1" in err
    assert main(["calibrate", "--dry-run", "--memory-limit", "1GiB", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["assumed"], document["measured"], document["fresh"]) == (True, False, False)
    assert document["calibration"]["status"] == "predicted"
    assert any("it assumes that the task needs" in note for note in document["calibration"]["notes"])
    assert not (project / ".batchcal").exists()


def test_show_displays_a_fresh_calibration(calibrated: Calibrated, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated()
    assert main(["show", "--why"]) == 0
    out = capsys.readouterr().out
    assert "fresh for 6 d 22 h" in out or "fresh for 6 d 23 h" in out
    assert "why a budget" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_show_explains_a_stale_calibration_and_check_exits_with_code_3(
    calibrated: Calibrated, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated()
    assert main(["show", "--check"]) == 0
    with (project / "task.py").open("a") as task:
        task.write("edited = True\n")
    assert main(["show"]) == 0
    out = capsys.readouterr().out
    assert "stale: other-task" in out
    assert "task.py was edited" in out
    assert main(["show", "--check"]) == 3
    assert capsys.readouterr() == ("", "")
    assert main(["show", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["fresh"], document["stale"]["reason"]) == (False, "other-task")
    assert main(["plan"]) == 3
    assert "cannot be used: other-task" in capsys.readouterr().err


def test_require_settled_rejects_an_unfinished_search(calibrated: Calibrated, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated(status="unsettled", undone=(Undone(part="search", text="a batch of 528 was next"),))
    assert main(["show", "--check"]) == 0
    assert main(["show", "--check", "--require-settled"]) == 3
    assert main(["plan", "--effective-batch", "512"]) == 0
    assert capsys.readouterr().err == ""
    for verb in (["plan", "--effective-batch", "512"], ["exec", "--effective-batch", "512"]):
        rest = ["--", "true"] if verb[0] == "exec" else []
        assert main([*verb, "--require-settled", *rest]) == 3
        err = capsys.readouterr().err
        assert "did not finish" in err
        assert "a batch of 528 was next" in err
        assert "batchcal calibrate task.py:task --time-limit 120s" in err
    assert main(["show", "--require-settled"]) == 2


def test_check_prints_no_output(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--check"]) == 3
    (project / "broken.json").write_text("{")
    assert main(["show", "--check", "broken.json"]) == 3
    assert capsys.readouterr() == ("", "")


def test_a_calibration_with_a_bad_digest_is_rejected(
    calibrated: Calibrated, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated()
    path = project / ".batchcal" / "calibration.json"
    path.write_bytes(path.read_bytes().replace(b'"wall_s": 9.6', b'"wall_s": 8.6'))
    for verb in ("show", "plan"):
        assert main([verb]) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert "bad-digest" in err


def test_require_signature_rejects_an_unsigned_file(calibrated: Calibrated, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated()
    for verb in ("show", "plan"):
        assert main([verb]) == 0
        assert main([verb, "--require-signature"]) == 3
        assert "unsigned" in capsys.readouterr().err


def test_a_calibration_without_a_result_is_shown_with_exit_code_3(
    calibrated: Calibrated, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated(status="partial", findings=())
    assert main(["show"]) == 3
    out, err = capsys.readouterr()
    assert "partial" in out
    assert "no plan can be made from it" in err


def test_show_html_replaces_only_a_page_of_batchcal(
    calibrated: Calibrated, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated()
    assert main(["show", "--html", "page.html"]) == 0
    out, err = capsys.readouterr()
    assert (project / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert out == ""
    assert "written: page.html" in err
    assert main(["show", "--html", "page.html"]) == 0, "a page of ours is replaced"
    assert main(["show", "--html", "new/page.html"]) == 0
    capsys.readouterr()
    (project / "mine.html").write_text("<!DOCTYPE html><title>mine</title>")
    for target, why in (
        ("task.py/page.html", "cannot be written"),
        ("mine.html", "not a page of batchcal"),
        ("task.py", "not a"),
    ):
        assert main(["show", "--html", target]) == 2
        assert why in capsys.readouterr().err
    assert "mine" in (project / "mine.html").read_text()


@pytest.mark.parametrize("target", [".", ".batchcal/calibration.json"])
def test_show_html_does_not_replace_a_calibration_or_a_folder(target: str, calibrated: Calibrated, project: Path) -> None:
    calibrated()
    before = (project / ".batchcal" / "calibration.json").read_bytes()
    assert main(["show", "--html", target]) == 2
    assert (project / ".batchcal" / "calibration.json").read_bytes() == before


@pytest.mark.parametrize("style", ["table", "json", "sh", "dotenv"])
def test_a_plan_is_printed_in_every_format(style: str, calibrated: Calibrated, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated()
    assert main(["plan", "--effective-batch", "1000", "--format", style]) == 0
    out = capsys.readouterr().out
    match style:
        case "json":
            assert json.loads(out)["micro_batches"] == [500, 500]
        case "sh":
            assert "export BATCHCAL_PLAN_MICRO_BATCHES='500,500'\n" in out
        case "dotenv":
            assert "BATCHCAL_PLAN_MICRO_BATCHES=500,500\n" in out
        case _:
            assert "2 x 500" in out


def test_plan_predicts_other_container_sizes(calibrated: Calibrated, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated()
    assert main(["plan", "--what-if", "512MiB,2GiB"]) == 0
    assert "predicted from the memory model" in capsys.readouterr().out
    assert main(["plan", "--what-if", "512MiB,2GiB", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["limit_bytes"] for one in document["predictions"]] == [GIB // 2, 2 * GIB]
    assert {one["status"] for one in document["predictions"]} == {"predicted"}
    assert main(["plan", "--what-if", "2g"]) == 2
    assert main(["plan", "--what-if", "2GiB", "--format", "dotenv"]) == 2


def test_an_allocator_that_was_not_measured_has_no_plan(calibrated: Calibrated, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated()
    assert main(["plan", "--allocator", "retain"]) == 3
    assert "nothing was verified for cpu with allocator retain" in capsys.readouterr().err


def test_train_with_no_calibrate_requires_an_existing_calibration(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--no-calibrate"]) == 3
    assert "no calibration of task.py:task in" in capsys.readouterr().err


def test_a_format_conflict_is_reported_in_both_formats(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", "--format", "sh"]) == 2
    out, err = capsys.readouterr()
    assert out == "(exit 2)\n"
    assert json.loads(err)["error"]["what"] == "--json and --format sh contradict each other"


def test_errors_are_json_when_json_is_requested(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--json"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    document = json.loads(err)
    assert (document["format"], document["kind"]) == (1, "error")
    assert document["error"]["exit_code"] == 3
    assert document["error"]["name"] == "NoCalibration"
    assert document["error"]["try"]


def test_a_failing_plan_in_sh_format_prints_a_failing_shell_command(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["plan", "--format", "sh"], ["plan", "--format=sh"]):
        assert main(arguments) == 3
        assert capsys.readouterr().out == "(exit 3)\n"


def test_a_result_that_is_not_saved_is_still_printed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine's own tests fill disks; here it counts that stdout has the answer and the exit code is 7."""
    from batchcal.calibration.store import not_saved

    def measured(*arguments: object, **others: object) -> CalibrationResult:
        return CalibrationResult(
            calibration=a_calibration(), path=None, fresh=False, not_saved=not_saved(Path("x"), "the disk is full")
        )

    monkeypatch.setattr("batchcal.measure.obtain.obtain", measured)
    assert main(["calibrate", "--json"]) == 7
    out, err = capsys.readouterr()
    assert json.loads(out)["calibration"]["findings"][0]["train"]["batch"] == 512
    assert json.loads(err)["error"]["known"] == "the disk is full"


def test_an_unexpected_error_shows_its_traceback_only_with_v(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object, **others: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("batchcal.cli.commands.valid_calibration.open_calibration", broken)
    assert main(["plan"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: unexpected exception: ZeroDivisionError: oh")
    assert "Traceback" not in err
    assert main(["plan", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_budget_is_shown_for_the_device_of_its_finding(calibrated: Calibrated, capsys: pytest.CaptureFixture[str]) -> None:
    far = Budget(device="cpu", limit_bytes=64 * GIB, others_bytes=0, margin_bytes=0, budget_bytes=GIB, learned_from="x")
    calibrated(budgets=(far,))
    assert main(["show"]) == 0
    assert "limit ╌" not in capsys.readouterr().out
