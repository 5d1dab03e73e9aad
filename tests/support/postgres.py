"""A PostgreSQL server of one's own, on loopback, that ends with its test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres"


def why_not() -> str:
    """Why there can be no server; empty: there can be one."""
    if not BINARIES and shutil.which("initdb") is None:
        return "PostgreSQL is not installed"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    return ""


@contextmanager
def server() -> Iterator[str]:
    """Yields the URL of an empty database. The server does not run as root, who may not."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user = USER if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    port = _free_port()
    data = folder / "data"

    def run(name: str, *arguments: str) -> None:
        path = str(BINARIES[-1] / name) if BINARIES else name
        subprocess.run(
            [path, *arguments],
            user=user,
            group=user,
            extra_groups=[] if user else None,
            check=True,
            capture_output=True,
            cwd=folder,
        )

    try:
        run("initdb", "-D", str(data), "-A", "trust", "-U", USER, "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg://{USER}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
