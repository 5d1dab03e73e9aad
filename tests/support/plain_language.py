"""Our lint rule for language: docstrings, comments and pages in plain technical English.

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
        for line, text, docstring in texts_of(path.read_text(encoding="utf-8")):
            found += findings_in(line, text, path, docstring=docstring)
    for finding in sorted(found):
        print(finding)
    print(f"{len(found)} habits to avoid")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
