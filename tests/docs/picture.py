"""Redraws the picture in the README from real output: a calibration in a real memory cgroup of 1 GiB."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from batchcal.calibration.locate import task_file
from batchcal.workload.spec.target import reference_of
from tests.support.cgroups import memory_cgroup

ROOT: Final = Path(__file__).resolve().parents[2]
TARGET: Final = ROOT / ".readme" / "calibrate.svg"
LIMIT_BYTES: Final = 1 << 30
WIDTH: Final = 80
COMMAND: Final = "batchcal calibrate configs/handwriting.toml"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, memory_cgroup(LIMIT_BYTES) as group:
        output = Path(folder) / "calibration.json"
        command = [sys.executable, "-m", "batchcal", *COMMAND.split()[1:], "--output", str(output), "--force", "--quiet"]
        environment = {
            **os.environ,
            "COLUMNS": str(WIDTH),
            "FORCE_COLOR": "1",
            "COLORTERM": "truecolor",
            "TERM": "xterm-256color",
        }
        shown = on_a_terminal(group.command(command), environment)
    TARGET.parent.mkdir(exist_ok=True)
    own = task_file(reference_of(COMMAND.split()[-1], directory=ROOT))
    TARGET.write_text(drawn(shown.replace(str(output), f".batchcal/{own}")), encoding="utf-8")


def on_a_terminal(command: list[str], environment: dict[str, str]) -> str:
    """What `command` prints where stdout is a terminal, colours included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    return shown.decode().replace("\r\n", "\n")


def drawn(output: str) -> str:
    """The terminal as SVG, its fonts the reader's own: no picture of ours loads anything from elsewhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(f"$ {COMMAND}\n"))
    console.print(Text.from_ansi(output.rstrip()))
    svg = console.export_svg(title="in a container of 1 GiB")
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


if __name__ == "__main__":
    main()
