"""Functions that tests run in real children."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import sys
import time

from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext

Arguments = dict[str, JSON]


def echo(arguments: Arguments, context: ChildContext) -> JSON:
    """Returns what it was given."""
    return arguments


def where(arguments: Arguments, context: ChildContext) -> JSON:
    """Tells of the process it runs in."""
    from pathlib import Path

    return {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "threads": len(os.listdir("/proc/self/task")),
        "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text()),
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
        "torch": "torch" in sys.modules,
    }


def die(arguments: Arguments, context: ChildContext) -> JSON:
    """Ends by the signal it is given."""
    os.kill(os.getpid(), int(str(arguments["signal"])))
    time.sleep(5)
    return None


def segfault(arguments: Arguments, context: ChildContext) -> JSON:
    """Reads from address zero."""
    return ctypes.string_at(0).decode()


def leave(arguments: Arguments, context: ChildContext) -> JSON:
    """os._exit without a word."""
    os._exit(int(str(arguments["code"])))


def sys_exit(arguments: Arguments, context: ChildContext) -> JSON:
    """sys.exit, as a user's script may do at import."""
    sys.exit(3)


def fail(arguments: Arguments, context: ChildContext) -> JSON:
    """Raises a user's error from a cause."""
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("the shapes do not match") from error


def hang_with_an_own_handler(arguments: Arguments, context: ChildContext) -> JSON:
    """Hangs, and has a handler of the signal that asks where it stands, as scripts for SLURM have."""
    signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(9))
    return hang(arguments, context)


def hang(arguments: Arguments, context: ChildContext) -> JSON:
    """Never ends."""
    context.phase("measure", limit_s=float(str(arguments.get("limit_s", 60))))
    while True:
        time.sleep(0.1)


def shout(arguments: Arguments, context: ChildContext) -> JSON:
    """Prints megabytes, then returns."""
    line = "x" * 1023 + "\n"
    for _ in range(int(str(arguments["kib"]))):
        sys.stdout.write(line)
    return "done"


def hold(arguments: Arguments, context: ChildContext) -> JSON:
    """Warms up, asks for the fence, then touches memory in steps until it holds `bytes`."""
    context.phase("warm-up")
    armed = context.arm() if arguments.get("arm", True) else False
    context.phase("measure")
    wanted, step = int(str(arguments["bytes"])), int(str(arguments.get("step", 8 << 20)))
    held: list[bytearray] = []
    while sum(map(len, held)) < wanted:
        block = bytearray(step)
        block[::4096] = b"x" * len(block[::4096])
        held.append(block)
    time.sleep(float(str(arguments.get("linger_s", 0))))
    return {"armed": armed, "held": sum(map(len, held))}


def tensors(arguments: Arguments, context: ChildContext) -> JSON:
    """The same with torch tensors, whose failure is torch's own."""
    import torch

    context.phase("warm-up")
    torch.ones(1000).sum()
    armed = context.arm()
    context.phase("measure")
    held = [torch.ones(int(str(arguments["bytes"])) // 4)]
    return {"armed": armed, "held": len(held)}


def fork_and_wait(arguments: Arguments, context: ChildContext) -> JSON:
    """Leaves a grandchild that would outlive it."""
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    context.send({"grandchild": child})
    if arguments.get("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    return child


def spawn_threads(arguments: Arguments, context: ChildContext) -> JSON:
    """Uses several OpenMP threads, which hangs in a child whose zygote ever did."""
    import torch

    torch.set_num_threads(2)
    return float((torch.ones(512, 512) @ torch.ones(512, 512)).sum())


def stop_itself(arguments: Arguments, context: ChildContext) -> JSON:
    """SIGSTOP: neither ends nor answers."""
    context.phase("measure")
    os.kill(os.getpid(), signal.SIGSTOP)
    return None


def raise_limit(arguments: Arguments, context: ChildContext) -> JSON:
    """Tries to get out of the fence."""
    context.arm()
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        return "refused"
    return "raised"


def tear_result(arguments: Arguments, context: ChildContext) -> JSON:
    """Leaves half a result file, as a full disk does."""
    (context.directory / "result.json").write_text('{"returned": [1, 2')
    os._exit(0)


def leave_shared_memory(arguments: Arguments, context: ChildContext) -> JSON:
    """Leaves a name in /dev/shm, as a killed DataLoader worker does."""
    from pathlib import Path

    Path(f"/dev/shm/torch_{os.getpid()}_1_0").write_bytes(b"x" * 4096)
    os._exit(1)


def tell_and_hang(arguments: Arguments, context: ChildContext) -> JSON:
    """Says who it is, then never ends."""
    context.send({"pid": os.getpid()})
    return hang({}, context)


def tell_and_work(arguments: Arguments, context: ChildContext) -> JSON:
    """Says who it is, then works for 20 ms."""
    context.send({"pid": os.getpid()})
    until = time.monotonic() + 0.02
    while time.monotonic() < until:
        sum(range(1000))
    return "done"


def tell_family(arguments: Arguments, context: ChildContext) -> JSON:
    """Says who it and its own child are, then never ends."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    context.send({"pid": os.getpid(), "grandchild": child})
    return hang({}, context)


def write_result(arguments: Arguments, context: ChildContext) -> JSON:
    """Leaves a result file of its own making."""
    (context.directory / "result.json").write_text(str(arguments["text"]))
    os._exit(0)


def lose_directory(arguments: Arguments, context: ChildContext) -> JSON:
    """Takes away the place for its own result, as a full disk does."""
    shutil.rmtree(context.directory)
    return "never seen"


def close_output(arguments: Arguments, context: ChildContext) -> JSON:
    """Closes what it prints to, as a daemon would."""
    sys.stdout.close()
    return "done"


def page_faults(arguments: Arguments, context: ChildContext) -> JSON:
    """Page faults of taking 64 MiB five times over, each time given back."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        block = bytearray(64 << 20)
        block[::4096] = b"x" * len(block[::4096])
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def leave_a_daemon(arguments: Arguments, context: ChildContext) -> JSON:
    """Leaves a grandchild in a session of its own."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.write(write, str(os.getpid()).encode())
        time.sleep(60)
        os._exit(0)
    context.send({"daemon": int(os.read(read, 20))})
    return "done"
