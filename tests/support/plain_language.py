"""Our lint rule for language: texts, docstrings, comments, identifiers and pages in plain technical English.

Many readers are not native speakers. The rules name habits that made earlier texts hard to read. They do not apply to text in
backquotes or quotation marks, which may be a name or an example.

    python -m tests.support.plain_language     # batchcal, README and docs; exits 1 if it finds something
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.forbidden_types import Finding, python_files

ROOT: Final = Path(__file__).resolve().parents[2]

QUOTED: Final = re.compile(r"`[^`]*`|\"[^\"]*\"")
DIRECTIVE: Final = re.compile(r"# *(?:noqa|fmt|pragma)\b[^-]*")


@dataclass(frozen=True)
class Rule:
    """A habit to avoid."""

    pattern: re.Pattern[str]
    reason: str


QUESTION: Final = Rule(
    re.compile(r"^(?:What|How|Which|Where|Who|Whose|Whether|Why)\b"),
    "begin with a noun phrase or an imperative: `Peak memory, bytes.`, `True if ...`, `Return ...`",
)
"""For the beginning of a docstring."""
RULES: Final = (
    Rule(
        re.compile(r"\b(?:nobody|somebody|whoever)\b", re.IGNORECASE), "name the subject: no process, another process, the caller"
    ),
    Rule(re.compile(r"\b(?:anew|besides|once\s+more)\b", re.IGNORECASE), "again, new, also"),
    Rule(re.compile(r"\b(?:goes|go|went)\s+on\b", re.IGNORECASE), "continue"),
    Rule(re.compile(r"\b(?:tells|told|heard|hears)\b", re.IGNORECASE), "verbs of speech: report, record, pass, return, show"),
    Rule(re.compile(r"\bknows?\s+nothing\b|\bsays?\s+nothing\b", re.IGNORECASE), "does not depend on, does not show"),
    Rule(re.compile(r"\b(?:is|are)\s+no\s+matter\b", re.IGNORECASE), "does not change, does not depend on"),
)

WORDS: Final = {
    word: reason
    for reason, words in {
        "verbs of speech: report, send, record, request, text": "told tell tells said say says asked heard hear hears",
        "name the value: the request, the caller, the process": "wish wished whoever nobody somebody",
        "again, also, new": "anew besides",
        "nouns of the field: invocation, worker pool, training setup, timing": "desk crew course lap",
    }.items()
    for word in words.split()
}
"""Words to avoid in identifiers, with what to write instead."""
ALONE: Final = dict.fromkeys(
    ["seen", "found", "one", "those", "there", "here", "whole", "began", "begun", "taken", "given", "drawn"], "name the value"
)
"""Words to avoid as a complete identifier."""
KEPT: Final = {
    "batchcal/detect/environment.py": {"accelerators_asked"},
    "batchcal/hpo/study_status.py": {"began"},
    "batchcal/guard/children/report.py": {"told"},
    "batchcal/train/loop.py": {"wish"},
}
"""Identifiers by file that are part of a format or of a public signature."""


def texts_of(source: str) -> Iterator[tuple[int, str, bool]]:
    """Line, text, and True for a docstring, of all docstrings and comments of a Python file.

    Raises:
        SyntaxError: it is not Python.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value, True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], DIRECTIVE.sub("", token.string), False


def literals_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of all strings of a Python file that are not docstrings and have several words, f-strings included.

    Raises:
        SyntaxError: it is not Python.
    """
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
            and " " in node.value.strip()
        ):
            yield node.lineno, node.value


def identifiers_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a Python file defines: functions, classes, parameters, variables, attributes.

    Raises:
        SyntaxError: it is not Python.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name


def words_of(name: str) -> list[str]:
    """Words of an identifier in lower case."""
    return [word.lower() for part in name.split("_") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part)]


def reasons_against(name: str) -> list[str]:
    """Reasons why an identifier is to be renamed."""
    words = words_of(name)
    return [WORDS[word] for word in words if word in WORDS] + [ALONE[word] for word in words if word in ALONE and len(words) == 1]


def findings_in(line: int, text: str, path: Path, *, docstring: bool = False) -> Iterator[Finding]:
    """Each habit in one text that begins at `line`."""
    if docstring and (match := QUESTION.pattern.search(text.strip())):
        yield Finding(path, line, 1, f"{match[0]!r}: {QUESTION.reason}")
    plain = QUOTED.sub(lambda quoted: re.sub(r"[^\n]", " ", quoted[0]), text)
    for rule in RULES:
        for match in rule.pattern.finditer(plain):
            yield Finding(path, line + plain.count("\n", 0, match.start()), 1, f"{match[0]!r}: {rule.reason}")


def main() -> int:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [finding for page in pages for finding in findings_in(1, page.read_text(encoding="utf-8"), page)]
    for path in python_files([ROOT / "batchcal"]):
        source = path.read_text(encoding="utf-8")
        for line, text, docstring in texts_of(source):
            found += findings_in(line, text, path, docstring=docstring)
        for line, text in literals_of(source):
            found += findings_in(line, text, path)
        kept = KEPT.get(path.relative_to(ROOT).as_posix(), set())
        for line, name in identifiers_of(source):
            if name not in kept:
                found += [Finding(path, line, 1, f"{name}: {reason}") for reason in reasons_against(name)]
    for finding in sorted(found):
        print(finding)
    print(f"{len(found)} habits to avoid")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
