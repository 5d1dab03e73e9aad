"""Every block of README and docs, and every config, is valid and runs as for a user who types it (`slow`)."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from batchcal.core.settings import SettingSource
from batchcal.hpo.config import study_of
from batchcal.values.settings import Settings
from batchcal.workload.spec.config import Config, read_config
from tests.docs import settings_page
from tests.support.commands import parse
from tests.support.markdown import Block, anchors, blocks, links, without_installing

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("guide", "commands", "containers", "calibration", "studies", "contributing")),
)
"""Those with blocks, in the order in which a reader types them: each finds what the ones before left."""
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(page, block) for page in PAGES for block in blocks((ROOT / page).read_text(encoding="utf-8"))]
NAMES = [f"{page}-line{block.line}-{block.language}" for page, block in BLOCKS]
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md"))
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
STUDIES = sorted((ROOT / "configs" / "hpo").glob("*.toml"))
TESTS_COMMAND = "python -m pip install nox && python -m nox"
SECONDS_PER_BLOCK = 600


def test_the_settings_page_matches_the_settings_tables() -> None:
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page(), "python -m tests.docs.settings_page"


def user_environment(home: Path) -> dict[str, str]:
    """What a user has who installed batchcal: our command on the path, a home, nothing else of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHCAL_", "PYTHON", "VIRTUAL_ENV"))}
    return kept | {"HOME": str(home), "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]]), "COLUMNS": "80"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which the blocks are run one after the other, so that each finds what the ones above left."""
    copy = tmp_path_factory.mktemp("project") / "batchcal"
    hidden_and_built = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, copy, ignore=hidden_and_built)
    (copy.parent / "home").mkdir()
    return copy


def run(project: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=project,
        env=user_environment(project.parent / "home"),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS_PER_BLOCK,
    )
    if check and done.returncode != 0:
        pytest.fail(
            f"exit {done.returncode} of\n{command[-1]}\n--- stdout\n{done.stdout[-3000:]}\n--- stderr\n{done.stderr[-3000:]}"
        )
    return done


def run_block(project: Path, block: Block) -> None:
    if block.not_run:
        pytest.skip(block.not_run)
    if block.file:
        path = project / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        if path.suffix == ".py":
            compile(block.text, block.file, "exec")
        return
    match block.language:
        case "console":
            commands = block.commands()
            assert commands, "a console block shows at least one `$ command`"
            for command in commands:
                # The tests would run themselves; that this command is the right one is what .ci/run shows.
                what = "python -m nox -l" if command == TESTS_COMMAND else without_installing(command)
                run(project, "bash", "-euo", "pipefail", "-c", what)
        case "sh" | "bash":
            run(
                project,
                "bash",
                "-euo",
                "pipefail",
                "-c",
                "\n".join(without_installing(line) for line in block.text.splitlines()),
            )
        case "python":
            run(project, sys.executable, "-c", block.text)
        case "toml":
            tomllib.loads(block.text)
        case "json":
            json.loads(block.text)
        case "text":
            pass
        case language:
            pytest.fail(f"line {block.line}: no way to run {language!r}; use console, sh, python, toml, json or text")


def batchcal_commands(line: str) -> list[list[str]]:
    """The arguments of each `batchcal` command in a line of a shell."""
    words = shlex.shlex(re.sub(r'^eval "\$\((.*)\)"$', r"\1", line), posix=True, punctuation_chars=True)
    words.wordchars += ":,{}"
    commands: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set("();<>|&"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command[1:] for command in commands if command[:1] == ["batchcal"]]


def check_settings(config: Config, name: str) -> None:
    """Raise where a table of the config has an unknown key or a value that cannot be read."""
    Settings(files=(SettingSource(name, config.tables),), environ={}).non_defaults()
    if "hpo" in config.tables:
        study_of(config, name)


def test_every_page_with_code_blocks_is_tested() -> None:
    with_blocks = {name for name in DOCUMENTS if blocks((ROOT / name).read_text(encoding="utf-8"))}
    assert with_blocks - {"CHANGELOG.md"} == set(PAGES)


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=NAMES)
def test_every_block_is_valid(page: str, block: Block, tmp_path: Path) -> None:
    """Without running it: Python compiles, TOML is a config of ours, JSON parses, and so does each batchcal command."""
    match block.language:
        case "python":
            compile(block.text, f"{page}, line {block.line}", "exec")
        case "toml":
            path = tmp_path / "config.toml"
            path.write_text(block.text, encoding="utf-8")
            config = read_config(path, directory=ROOT)
            check_settings(config, block.file)
        case "json":
            json.loads(block.text)
        case "console" | "sh" | "bash":
            lines = block.commands() if block.language == "console" else block.text.splitlines()
            for line in lines:
                for arguments in batchcal_commands(line):
                    assert arguments == ["--help"] or parse(arguments)


@pytest.mark.slow
@pytest.mark.child
@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=NAMES)
def test_every_block_runs(block: Block, project: Path) -> None:
    run_block(project, block)


@pytest.mark.parametrize("config", [*CONFIGS, *STUDIES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_in_the_repository_is_valid(config: Path) -> None:
    check_settings(read_config(config, directory=ROOT), config.name)


@pytest.mark.slow
@pytest.mark.child
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_in_the_repository_calibrates(config: Path, project: Path, tmp_path: Path) -> None:
    answer = tmp_path / "calibration.json"
    command = [
        sys.executable,
        "-m",
        "batchcal",
        "calibrate",
        f"configs/{config.name}",
        "--time-limit",
        "20s",
        "--max-batch",
        "64",
    ]
    run(project, *command, "--memory-limit", "2GiB", "--output", str(answer))
    calibration = json.loads(answer.read_text())
    assert calibration["kind"] == "calibration"
    assert calibration["findings"][0]["train"]["batch"] >= 1


def test_each_example_has_a_config() -> None:
    examples = ROOT / "batchcal" / "workload" / "examples"
    wanted = {"handwriting", "patchtst", "textpair", "multiimage"}
    present = {path.stem for path in examples.iterdir() if not path.name.startswith("_")}
    assert wanted <= present
    assert wanted <= {config.stem for config in CONFIGS}


@pytest.mark.slow
@pytest.mark.child
@pytest.mark.parametrize("config", STUDIES, ids=lambda path: path.name)
def test_every_study_in_the_repository_can_be_started(config: Path, project: Path, tmp_path: Path) -> None:
    study = ["batchcal", "hpo", "run", f"configs/hpo/{config.name}"]
    run(project, *study, "--write-configs", str(tmp_path))
    if config.stem == "patchtst-small":
        told = run(project, *study, "--set", "trials=2", "--json")
        assert json.loads(told.stdout)["done"] == 2


def test_the_readme_shows_the_calibrate_and_test_commands() -> None:
    commands = [command for block in blocks(README) if block.language == "console" for command in block.commands()]
    assert any(command.endswith("batchcal calibrate configs/handwriting.toml") for command in commands[:1]), commands[:1]
    assert TESTS_COMMAND in commands
    assert TESTS_COMMAND in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.child
def test_the_help_in_the_docs_matches_the_command(project: Path) -> None:
    shown = [text for _, block in BLOCKS if (text := block.output_of("batchcal --help")) is not None]
    assert shown, "docs/guide.md shows `$ batchcal --help`"
    real = run(project, sys.executable, "-m", "batchcal", "--help").stdout
    assert without_margins(shown[0]) == without_margins(real)


def without_margins(text: str) -> str:
    """`text` without blanks at the ends of lines and empty lines around it."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


@pytest.mark.child
def test_every_verb_is_in_the_readme(project: Path) -> None:
    listed = run(project, sys.executable, "-m", "batchcal", "--help").stdout.partition("Commands")[2]
    verbs = re.findall(r"^[│ ] *([a-z][a-z-]*)  ", listed, re.MULTILINE)
    assert {"detect", "calibrate", "show", "plan", "train"} <= set(verbs)
    assert [verb for verb in verbs if f"batchcal {verb}" not in README] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_has_an_existing_target(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    broken = []
    for link in links(text):
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target.read_text("utf-8"))):
            broken.append(link)
    assert not broken
