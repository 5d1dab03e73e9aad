"""The lint rule for language finds habits in docstrings, comments and pages, and leaves names and examples alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.plain_language import findings_in, identifiers_of, literals_of, main, reasons_against, texts_of

PATH = Path("file.py")


@pytest.mark.parametrize(
    ("text", "habit"),
    [
        ("What a child may hold.", "What"),
        ("Whether it fits.", "Whether"),
        ("A file that nobody has signed.", "nobody"),
        ("The training\ngoes on.", "goes on"),
        ("Measured anew.", "anew"),
        ("The number that the child told.", "told"),
    ],
)
def test_a_discouraged_word_is_reported_with_its_line(text: str, habit: str) -> None:
    (finding,) = findings_in(3, text, PATH, docstring=True)
    assert finding.what.startswith(f"{habit!r}: ")
    assert finding.line == 3 + text.count("\n")


@pytest.mark.parametrize("text", ["`told`: the callback.", 'Prints "training goes on".', "The whole number.", "Memory, bytes."])
def test_names_examples_and_plain_texts_pass(text: str) -> None:
    assert list(findings_in(1, text, PATH, docstring=True)) == []


def test_docstrings_attribute_docstrings_and_comments_are_checked() -> None:
    source = '"""Module."""\nLIMIT = 1\n"""Attribute."""\n\n\ndef f() -> None:\n    """Function."""  # Comment.\n'
    texts = [(line, text.strip("# ")) for line, text, _ in texts_of(source)]
    assert sorted(texts) == [(1, "Module."), (3, "Attribute."), (7, "Comment."), (7, "Function.")]


def test_string_literals_are_checked_without_names_and_docstrings() -> None:
    source = '"""Module."""\nraise ValueError(f"batch {size} told nothing", "out-of-memory")\n'
    assert [text for _, text in literals_of(source)] == [" told nothing"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def tell(): ...", "tell"),
        ("class Crew: ...", "Crew"),
        ("def f(wish): ...", "wish"),
        ("_told_of = 1", "_told_of"),
        ("for seen in (): ...", "seen"),
        ("self.heard = 1", "heard"),
    ],
)
def test_all_kinds_of_identifiers_are_checked(source: str, name: str) -> None:
    assert name in [found for _, found in identifiers_of(source)]
    assert reasons_against(name)


@pytest.mark.parametrize("name", ["teller", "overlap", "profound", "samples_seen", "TimeSlices", "NOT_FOUND"])
def test_similar_identifiers_pass(name: str) -> None:
    assert not reasons_against(name)


def test_the_repository_uses_plain_language(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0, capsys.readouterr().out
