"""One line of key=value that a program can split, whatever the text in it."""

from __future__ import annotations

import shlex

from hypothesis import given, settings
from hypothesis import strategies as st

from batchcal.core.progress import Note, Progress, Recorded, Silent, key_values


def test_an_event_line_contains_the_name_and_the_fields_in_order() -> None:
    line = key_values(
        "probe_ended", {"batch": 512, "outcome": "fits", "wall_s": 2.5, "fresh": True, "why": None, "verified": False}
    )

    assert line == "probe_ended batch=512 outcome=fits wall_s=2.5 fresh=true verified=false"


def test_text_with_spaces_quotes_or_newlines_is_quoted() -> None:
    line = key_values("x", {"a": "two words", "b": "", "c": 'say "no"', "d": "k=v", "e": "one\ntwo\tthree"})

    assert line == r'x a="two words" b="" c="say \"no\"" d="k=v" e="one\ntwo\tthree"'


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])))
@settings(deadline=None, database=None)
def test_quoted_text_can_be_parsed_by_a_shell(text: str) -> None:
    line = key_values("x", {"a": text})

    assert "\n" not in line
    if line.startswith('x a="'):
        assert shlex.split(line)[1] == f"a={text}"
    else:
        assert line == f"x a={text}"


def test_a_listener_can_record_or_ignore_events() -> None:
    recorded = Recorded()
    listeners: list[Progress[Note]] = [Silent(), recorded]
    for listener in listeners:
        listener.event(Note("all is well"))

    assert recorded.events == [("note", {"text": "all is well"})]
