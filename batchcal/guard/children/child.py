"""Code inside a child: set up the process, run the one function of its job, write the result to a file, and exit.

Also the command of a spawned child if there is no zygote: `python -m batchcal.guard.children.child CONTROL OUTPUT`, with two
descriptors.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Final, NoReturn

from batchcal.guard.channel.wire import JSON, Channel, Message
from batchcal.guard.children.report import describe, free_frames
from batchcal.guard.cleanup.shared_names import own_shared_names
from batchcal.guard.ending import LOST
from batchcal.guard.job import OUTPUT_DESCRIPTOR, ChildContext, dump_stacks_on_request, flush_output, resolve
from batchcal.guard.limits.fence import FIRST_TO_GO
from batchcal.machine.allocator import apply_mallopt, requests_retain

RESULT_NAME: Final = "result.json"
ARGUMENTS_NAME: Final = "arguments.json"
PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36


def run_child(request: Message, control: int, output: int) -> NoReturn:
    """Never returns or raises: a forked child must not unwind into the zygote's own code. This process owns the descriptors
    `control` and `output`."""
    try:
        _run_job(request, control, output)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the report itself failed; only the exit code can show it
        traceback.print_exc()
    finally:
        os._exit(LOST)


def _run_job(request: Message, control: int, output: int) -> None:
    parent = os.getppid()
    _set_up_process(request, output, parent)
    channel = Channel(socket.socket(fileno=control))
    directory = Path(str(request["directory"]))
    own_shared_names(directory)
    context = ChildContext(channel, directory)
    try:
        arguments = json.loads((directory / ARGUMENTS_NAME).read_text(encoding="utf-8"))
        value = resolve(str(request["function"]))(arguments if isinstance(arguments, dict) else {}, context)
        context.disarm_reserve()
        write_result(directory, {"returned": value})
    except BaseException as error:  # noqa: BLE001 - SystemExit, KeyboardInterrupt and MemoryError are results, too
        context.disarm_reserve()
        raised = describe(error, context.phase_name)
        try:
            write_result(directory, {"raised": raised.model_dump(mode="json")})
        except MemoryError:
            # Not earlier: the frames hold objects of the user, and freeing them may hang.
            free_frames(error)
            write_result(directory, {"raised": raised.model_dump(mode="json")})
        flush_output()
        os._exit(0)  # here: the end of this clause would free the frames
    flush_output()


def write_result(directory: Path, result: dict[str, JSON]) -> None:
    """Write the result. The parent reads it after this process has ended."""
    write_file(directory, RESULT_NAME, result)


def write_file(directory: Path, name: str, value: dict[str, JSON]) -> None:
    """Write to a temporary file and rename it, so that the parent reads a complete file or none."""
    temporary = directory / f"{name}.part"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
    temporary.rename(directory / name)


def _set_up_process(request: Message, output: int, parent: int) -> None:
    if os.getsid(0) != os.getpid():
        os.setsid()  # its own group, so that a kill reaches its workers, and Ctrl-C on the terminal does not reach it
    die_with_parent(parent)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(output, 1)
    os.dup2(output, OUTPUT_DESCRIPTOR)
    os.close(output)
    volunteer_for_the_kernel()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable(OUTPUT_DESCRIPTOR, all_threads=False)
    dump_stacks_on_request()
    environment = request.get("environment")
    if isinstance(environment, dict):
        os.environ.clear()
        os.environ.update({name: str(value) for name, value in environment.items()})
    if requests_retain(os.environ):
        apply_mallopt()  # the process that this one was forked from may have started without these variables
    os.chdir(str(request["working_directory"]))


def die_with_parent(parent: int) -> None:
    """Let the kernel (Linux) send SIGKILL to this process when `parent` ends. Exit at once if it has already ended."""
    follow_parent()
    if os.getppid() != parent:
        os._exit(1)


def follow_parent() -> None:
    """Let the kernel (Linux) send SIGKILL to this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Let the kernel (Linux) make this process the parent of every descendant that loses its own parent (a sub-reaper)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def volunteer_for_the_kernel() -> None:
    """If the kernel must kill, it kills this process and not its parent: 20 of 20 with 1000, 0 of 20 without."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO), encoding="ascii")
    except OSError:
        return  # not Linux, or not dumpable after a setuid: one layer less, which `Ending.layers` shows


def main() -> NoReturn:
    """Take the descriptors from the command line and the request from the control socket."""
    control, output = int(sys.argv[1]), int(sys.argv[2])
    channel = Channel(socket.socket(fileno=os.dup(control)))
    request = channel.wait()
    if request is None:
        os._exit(1)
    run_child(request, control, output)


if __name__ == "__main__":
    main()
