"""Reads Markdown as a reader who types along: the fenced blocks, the commands in them, the links.

A comment right above a fence says what else is to be done with it:

    <!-- file: train.py -->       saved under this name for the commands below, not run
    <!-- not run: needs Docker -->   left alone, and the reason is told
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_FENCE: Final = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w+-]*)[^\n]*$")
_DIRECTIVE: Final = re.compile(r"^ *<!-- *(?P<name>file|not run): *(?P<value>.+?) *--> *$")
_LINK: Final = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|(?:src|href)=\"([^\"]+)\"")
_HEADING: Final = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_INSTALLS: Final = re.compile(r"^(?:python3? -m )?pip install (?:[^&|;]|\\\n)+&&\s*")


@dataclass(frozen=True)
class Block:
    language: str
    """Empty where the fence names none."""
    text: str
    line: int
    """Where the fence stands, from 1."""
    file: str = ""
    """Save it under this name."""
    not_run: str = ""
    """Why it is not run."""

    def commands(self) -> list[str]:
        """What a `console` block has behind its `$ `, lines ended by a backslash joined to the next, without the output."""
        found: list[str] = []
        open_command = False
        for line in self.text.splitlines():
            if open_command:
                found[-1] += "\n" + line.removeprefix("> ")
            elif line.startswith("$ "):
                found.append(line[2:])
            else:
                continue
            open_command = found[-1].endswith("\\")
        return found

    def output_of(self, command: str) -> str | None:
        """What the block shows under `command`; None where it does not show that command."""
        lines = self.text.splitlines()
        for start, line in enumerate(lines):
            if line == f"$ {command}":
                shown = lines[start + 1 :]
                end = next((number for number, later in enumerate(shown) if later.startswith("$ ")), len(shown))
                return "\n".join(shown[:end]).strip("\n")
        return None


def blocks(text: str) -> list[Block]:
    """Every fenced block, in order.

    Raises:
        ValueError: a fence that is never closed.
    """
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if opened is None:
            number += 1
            continue
        fence, indent = opened["fence"], len(opened["indent"])
        end = next((later for later in range(number + 1, len(lines)) if lines[later].strip() == fence), None)
        if end is None:
            raise ValueError(f"line {number + 1}: this fence is never closed")
        above = next((line for line in reversed(lines[:number]) if line.strip()), "")
        directive = _DIRECTIVE.match(above)
        said = {directive["name"].replace(" ", "_"): directive["value"]} if directive else {}
        body = "\n".join(line[min(indent, len(line) - len(line.lstrip())) :] for line in lines[number + 1 : end])
        found.append(Block(opened["language"], body + "\n", number + 1, said.get("file", ""), said.get("not_run", "")))
        number = end + 1
    return found


def without_installing(command: str) -> str:
    """`pip install X && DO` -> `DO`: what runs the documentation is installed already, and a clean install is tried by CI."""
    return _INSTALLS.sub("", command)


def links(text: str) -> list[str]:
    """Every target of a link or a picture outside fenced blocks, in order."""
    return [first or second for first, second in _LINK.findall(_outside_blocks(text))]


def anchors(text: str) -> set[str]:
    """The names that headings can be linked by, as GitHub makes them."""
    headings = _HEADING.findall(_outside_blocks(text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _outside_blocks(text: str) -> str:
    lines = text.splitlines()
    for block in blocks(text):
        size = block.text.count("\n") + 1
        lines[block.line - 1 : block.line + size] = [""] * (size + 1)
    return "\n".join(lines)
