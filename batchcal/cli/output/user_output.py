"""Output of the user's code in this process: never on stdout, which is for the result. -v shows the output of loading."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from textwrap import indent
from typing import TYPE_CHECKING, Final, TextIO

from batchcal.cli.output.messages import Messages
from batchcal.core.errors import BatchcalError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SHOWN_BYTES: Final = 16_384
"""Bytes of the output that -v shows: a few screens."""
KEPT_BYTES: Final = 2_000
"""Bytes of the end of the output that are kept for an error message."""
_READ: Final = 65_536
_DRAIN_S: Final = 1.0


@contextlib.contextmanager
def only_result_on_stdout() -> Iterator[None]:
    """Redirect stdout to stderr while the context is active. Afterwards, the streams and sys.argv are restored, whatever the
    user's module put in their place."""
    stdout, stderr, argv = sys.stdout, sys.stderr, sys.argv
    _flush(stdout)
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, stdout, stderr, argv)
        if _descriptor(stdout) != 1:
            stack.enter_context(contextlib.redirect_stdout(stderr))
        stack.enter_context(_redirected(1, 2))
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr, stdout):
                _flush(stream)


@contextlib.contextmanager
def loading_output(messages: Messages) -> Iterator[None]:
    """Context in which the user's code is loaded. -v shows its output up to SHOWN_BYTES; an error shows the end of it."""
    if _descriptor(sys.stderr) != 2:
        yield  # a stream of the caller: it is not redirected
        return
    with contextlib.closing(_Reader(messages)) as reader:
        try:
            with _redirected(1, reader.write_end), _redirected(2, reader.write_end):
                try:
                    yield
                finally:
                    _flush(sys.stdout)
                    _flush(sys.stderr)
            _restore(sys.stdout, sys.stderr, sys.argv)
        except BatchcalError as error:
            end = reader.close()
            if end and not messages.verbose:
                error.known = f"{error.known}\nIt printed:\n{indent(end, '  ')}".strip()
            raise


class _Reader:
    """Reader of a pipe in a thread, so that a process started by the user's code may keep the other end while it runs."""

    def __init__(self, messages: Messages) -> None:
        self._remaining_bytes = SHOWN_BYTES if messages.verbose and not messages.quiet else 0
        self._end = b""
        self._read_end, self.write_end = os.pipe()
        self._stderr = os.dup(2)
        self._thread = threading.Thread(target=self._read, name="batchcal-output", daemon=True)
        self._thread.start()

    def close(self) -> str:
        """End the reading if no process holds the other end. Returns the end of the output."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1
            self._thread.join(_DRAIN_S)
        return self._end.decode(errors="replace").strip()

    def _read(self) -> None:
        while data := os.read(self._read_end, _READ):
            self._end = (self._end + data)[-KEPT_BYTES:]
            if self._remaining_bytes > 0:
                shown = (
                    data
                    if len(data) < self._remaining_bytes
                    else data[: self._remaining_bytes] + b"\n  (further output is not shown)\n"
                )
                self._remaining_bytes -= len(data)
                with contextlib.suppress(OSError):
                    os.write(self._stderr, shown)
        os.close(self._read_end)
        os.close(self._stderr)


@contextlib.contextmanager
def _redirected(descriptor: int, target: int) -> Iterator[None]:
    """Make `descriptor` a copy of `target` while the context is active."""
    try:
        before = os.dup(descriptor)
        os.dup2(target, descriptor)
    except OSError:  # it was closed before
        yield
        return
    try:
        yield
    finally:
        os.dup2(before, descriptor)
        os.close(before)


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


class _Bytes(io.RawIOBase):
    """Binary stream that writes to a stream of the user with `write` and little else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        self._stream.write(self._decoder.decode(bytes(data)))
        return len(bytes(data))


def _complete_stream(stream: TextIO) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(_Bytes(stream)), encoding="utf-8", errors="replace", line_buffering=True)


def _restore(stdout: TextIO, stderr: TextIO, argv: list[str]) -> None:
    sys.stdout, sys.stderr, sys.argv = _usable_stream(stdout, 1), _usable_stream(stderr, 2), argv


def _usable_stream(stream: TextIO, descriptor: int) -> TextIO:
    """Return `stream`, or a replacement if the user's code closed it or put an object in its place that only writes."""
    if not getattr(stream, "closed", False):
        return stream if hasattr(stream, "isatty") and hasattr(stream, "flush") else _complete_stream(stream)
    return open(descriptor, "w", encoding="utf-8", errors="replace", closefd=False)


def _flush(stream: TextIO | None) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if stream is not None:
            stream.flush()
