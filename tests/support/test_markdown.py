"""The reader of our documents sees every block, and in it what somebody would type."""

from __future__ import annotations

import pytest

from tests.support.markdown import anchors, blocks, links, without_installing

DOCUMENT = """\
# A tool

See [the config](configs/a.toml), [below](#two-words--more), ![picture](docs/a.svg "title") and <img src="b.png">.

```console
$ tool run \\
    --fast
done in 3 s
$ tool --help
Usage: tool

  ends here
```

<!-- file: train.py -->

```python
import tool  # [not](a-link)
```

- in a list:

  ```sh
  # not a heading
  if true; then
    tool
  fi
  ```

<!-- not run: needs Docker -->
~~~sh
docker run tool
~~~

## Two words & more
"""


def test_every_block_has_its_language_and_line() -> None:
    assert [(block.language, block.line) for block in blocks(DOCUMENT)] == [
        ("console", 5),
        ("python", 17),
        ("sh", 23),
        ("sh", 31),
    ]


def test_a_console_block_returns_commands_without_output() -> None:
    assert blocks(DOCUMENT)[0].commands() == ["tool run \\\n    --fast", "tool --help"]


def test_the_output_of_a_command_ends_at_the_next_command() -> None:
    block = blocks(DOCUMENT)[0]
    assert block.output_of("tool --help") == "Usage: tool\n\n  ends here"
    assert block.output_of("tool --version") is None


def test_a_comment_above_a_block_sets_its_file_or_skip_reason() -> None:
    console, python, shell, docker = blocks(DOCUMENT)
    assert (console.file, python.file, shell.not_run, docker.not_run) == ("", "train.py", "", "needs Docker")


def test_a_block_in_a_list_is_dedented() -> None:
    assert blocks(DOCUMENT)[2].text == "# not a heading\nif true; then\n  tool\nfi\n"


def test_links_and_headings_inside_blocks_are_ignored() -> None:
    assert links(DOCUMENT) == ["configs/a.toml", "#two-words--more", "docs/a.svg", "b.png"]
    assert anchors(DOCUMENT) == {"a-tool", "two-words--more"}


def test_an_unclosed_code_block_is_rejected() -> None:
    with pytest.raises(ValueError, match="line 3"):
        blocks("text\n\n```sh\nls\n")


@pytest.mark.parametrize(
    ("typed", "run"),
    [
        ("python -m pip install . && batchcal detect", "batchcal detect"),
        ("pip install batchcal --extra-index-url X && batchcal detect --json", "batchcal detect --json"),
        ("batchcal detect && echo yes", "batchcal detect && echo yes"),
        ("python -m pip install -e .", "python -m pip install -e ."),
    ],
)
def test_install_commands_are_removed(typed: str, run: str) -> None:
    assert without_installing(typed) == run
