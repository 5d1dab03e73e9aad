"""Template of a command: its words, in which placeholders such as `{batch_size}` stand for planned values."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from batchcal.core.errors import UsageError
from batchcal.core.values import Frozen

BATCH_SIZE: Final = "batch_size"
ACCUMULATION_STEPS: Final = "accumulation_steps"
EFFECTIVE_BATCH: Final = "effective_batch"
SCRATCH: Final = "scratch"
PLACEHOLDERS: Final = {
    BATCH_SIZE: "samples per forward pass of one process",
    "eval_batch_size": "samples per forward pass of an evaluation",
    ACCUMULATION_STEPS: "micro-batches per optimizer step",
    EFFECTIVE_BATCH: "samples per optimizer step, over all processes",
    "num_workers": "DataLoader workers",
    "threads": "intra-op threads of one process",
    SCRATCH: "a private folder, removed after a probe",
}
HIDDEN: Final = "***"
_FIELD: Final = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
_SECRET: Final = re.compile(
    r"(?:^|[-_.])(?:token|secret|password|passwd|credentials?|(?:api|access|secret|private)[-_.]?key)$", re.IGNORECASE
)
"""Names of secrets. A masked value is no part of the identity, so that `--max-tokens` or `--text-key` must not be masked."""
_USER_OF_URL: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_PYTHON: Final = re.compile(r"python(?:\d+(?:\.\d+)?)?")
_SAFE: Final = re.compile(r"(?!.*\{[^}]*(?:,|\.\.)[^}]*\})[\w@%+=:,./{}-]+", re.ASCII)
"""Words that a shell leaves as they are. It expands braces only around a comma or two dots."""
_SIMILAR: Final = 0.65
"""Similarity of difflib from which a name is a misspelled placeholder. `{batch}` and `{batchsize}` are above, `{epoch}`, `{step}`
and `{val_loss}`, which file names of checkpoints contain, are below."""


class Template(Frozen):
    """A command line. It stays a list of words: no shell reads it."""

    words: tuple[str, ...]
    """`NAME=value` words first, if there are any; then the program with its arguments."""

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the placeholders in it, in the order of `PLACEHOLDERS`."""
        names = {match[2] for word in self.words for match in _FIELD.finditer(word)}
        return tuple(name for name in PLACEHOLDERS if name in names)

    @property
    def argv(self) -> tuple[str, ...]:
        """The program with its arguments, without the variables before it."""
        return self.words[self._assignments() :]

    def filled(self, values: Mapping[str, str]) -> Template:
        """Return the command with a value in place of each placeholder. `{{name}}` becomes `{name}`; other braces stay."""

        def value_of(match: re.Match[str]) -> str:
            if match[1] is not None:
                return match[0][1:-1] if match[1] in PLACEHOLDERS else match[0]
            return values.get(match[2], match[0]) if match[2] in PLACEHOLDERS else match[0]

        return Template(words=tuple(_FIELD.sub(value_of, word) for word in self.words))

    def variables(self) -> dict[str, str]:
        """Environment variables that are set before the program."""
        assigned = (word.partition("=") for word in self.words[: self._assignments()])
        return {name: value for name, _, value in assigned}

    @property
    def masked(self) -> tuple[str, ...]:
        """The words with secrets hidden, for files and messages: values of `--api-token`, `KEY=...`, users in a URL."""
        words: list[str] = []
        hides_next = False
        for word in self.words:
            name, equals, _ = word.partition("=")
            has_placeholder = _FIELD.search(word) is not None
            if hides_next and not has_placeholder:
                words.append(HIDDEN)
            elif equals and _SECRET.search(name) and not has_placeholder:
                words.append(f"{name}={HIDDEN}")
            else:
                words.append(_USER_OF_URL.sub(HIDDEN, word))
            hides_next = not equals and word.startswith("-") and _SECRET.search(word) is not None
        return tuple(words)

    @property
    def text(self) -> str:
        """The command as a shell would read it, with secrets hidden."""
        return " ".join(word if _SAFE.fullmatch(word) else shlex.quote(word) for word in self.masked)

    def _assignments(self) -> int:
        return next((place for place, word in enumerate(self.words) if not _ASSIGNMENT.match(word)), len(self.words))


def template_of(words: Sequence[str], *, is_measured: bool = True) -> Template:
    """Return the template of a command line.

    Args:
        is_measured: the command will be observed. False: it is only started.

    Raises:
        UsageError: it names no program, or a placeholder is misspelled.
    """
    template = Template(words=tuple(words))
    if not template.argv or not template.argv[0]:
        raise UsageError(
            "no command follows --",
            known="a command is the line that starts the training, with placeholders for what batchcal may choose",
            try_="batchcal calibrate -- python train.py --batch-size {batch_size}",
        )
    if is_measured:
        _check_interpreter(template.argv)
    for word in template.words:
        for match in _FIELD.finditer(word):
            name = match[2]
            close = difflib.get_close_matches(name or "", PLACEHOLDERS, n=1, cutoff=_SIMILAR)
            if name is not None and name not in PLACEHOLDERS and close:
                raise UsageError(
                    f"{{{name}}} in {word!r} is not a placeholder (did you mean {{{close[0]}}}?)",
                    known=f"placeholders: {', '.join(f'{{{known}}}' for known in PLACEHOLDERS)}",
                    try_=f"{{{close[0]}}}, or {{{{{name}}}}} if the command itself needs {{{name}}}",
                )
    return template


def _check_interpreter(argv: Sequence[str]) -> None:
    """Refuse a Python that ignores PYTHONPATH or starts without `site`: no process of it can be observed.

    Raises:
        UsageError: the command starts one.
    """
    if not _PYTHON.fullmatch(argv[0].rpartition("/")[2]):
        return
    for word in argv[1:]:
        if not word.startswith("-") or word in ("-m", "-c"):
            return
        if not word.startswith(("--", "-W", "-X")) and set(word) & set("IES"):
            raise UsageError(
                f"{argv[0]} {word} cannot be observed",
                known="with -I, -E or -S, Python ignores PYTHONPATH or starts without its site module, where the observer starts",
                try_="the same command without this option",
            )
