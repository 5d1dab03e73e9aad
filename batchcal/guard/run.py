"""Run one job in one child and watch it until it is gone: one child, one reply or one cause of death."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, assert_never

from pydantic import ValidationError

from batchcal.core.errors import GuardError
from batchcal.guard.channel.messages import ArmRequest, ListenerMessage, MemberArmRequest, PhaseStarted, Unfenced, read_back
from batchcal.guard.channel.wire import JSON, Message
from batchcal.guard.children.child import RESULT_NAME
from batchcal.guard.children.report import Raised
from batchcal.guard.cleanup.kill import end_orphans, kill_group
from batchcal.guard.cleanup.shared_names import sweep_shared_memory
from batchcal.guard.ending import Ending
from batchcal.guard.launch import Ender, FunctionJob, Launcher, StartedChild
from batchcal.guard.limits.fence import arm_data_limit, volunteers
from batchcal.guard.limits.watchdog import INTERVAL_S, GroupMeter, Watchdog
from batchcal.guard.outcome import Phase
from batchcal.machine.meters import read_status

OUTPUT_TAIL_BYTES: Final = 64 * 1024
RESULT_LIMIT_BYTES: Final = 64 << 20
DUMP_S: Final = 0.3
"""Time in which a child past its deadline can dump its stacks, seconds."""
KILL_LIMIT_S: Final = 5.0
"""If a launcher does not report the end of a killed child within this time, the launcher itself is stopped. Seconds."""
BACK_LIMIT_S: Final = 3.0
"""A SIGKILLed torch process releases its memory within 45-84 ms. A loaded machine takes longer."""
PHASE_LIMIT_S: Final = 120.0
"""Deadline of a phase for which neither the parent nor the child sets one, seconds."""


@dataclass(frozen=True, kw_only=True)
class ChildLimits:
    """Limits of a child: wall time in seconds, demand in bytes."""

    allowed_bytes: int | None = None
    """Memory at which the fence stops the child, bytes. It is armed when the child requests it. None: only the watchdog."""
    shared_bytes: int = 0
    """Memory that the child shares with the process that it was forked from, bytes. The memory group does not grow by it."""
    phase_s: Mapping[str, float] = field(default_factory=dict)
    """Deadline by phase, seconds. Other phases have the deadline that the child sends, or `PHASE_LIMIT_S`."""
    total_s: float | None = None
    """Deadline for all phases together, seconds."""
    total_name: str = ""
    """Name of that deadline in messages: `the time limit of 20 s (--time-limit)`."""
    neighbours: bool = False
    """Other processes in the memory group grow and shrink at the same time, so its growth does not measure this child."""
    host_fence: bool = True
    """False if the address space must not be limited (a CUDA context): only the watchdog."""
    processes: int = 1
    """Number of processes of a tree that will report that they are ready. They share the remaining growth of the tree."""
    own_fence: bool = False
    """The child sets its own data limit and moves it while it runs. It counts as armed once the child reports it."""


Listener = Callable[[Message], None]


def run(
    job: FunctionJob,
    launcher: Launcher,
    group: GroupMeter,
    limits: ChildLimits,
    listen: Listener | None = None,
    *,
    check: Callable[[], None] | None = None,
) -> Ending:
    """Run `job` until it ends in any way. When this returns or raises, the child and all processes that it started are gone.

    Args:
        listen: called with each message of the child. Must be quick: memory is not checked during the call.
        check: called at every memory check; may raise to end the child.

    Raises:
        GuardError: no child could be started. (The failure of a started child is returned, never raised.)
    """
    kills_before = group.oom_kills()
    return watch_child(launcher.start(job), launcher, group, limits, listen, check=check, kills_before=kills_before)


def watch_child(
    child: StartedChild,
    ender: Ender,
    group: GroupMeter,
    limits: ChildLimits,
    listen: Listener | None = None,
    *,
    check: Callable[[], None] | None = None,
    is_complete: Callable[[], bool] | None = None,
    kills_before: int | None = None,
) -> Ending:
    """Watch a started child, as `run` does.

    Args:
        ender: the launcher of the child.
        is_complete: called at every memory check. True: the child has done its work, and is killed (`killed_for` is `stop`).
        kills_before: kernel OOM kills in the group before the child was started.
    """
    watch = _Watch(child, ender, group, limits, listen=listen, check=check, is_complete=is_complete)
    try:
        watch.until_gone()
    finally:
        watch.end()
    kills_after = group.oom_kills()
    return watch.ending((kills_after or 0) - (kills_before or 0))


class _Watch:
    """State of the watch over one child."""

    def __init__(
        self,
        child: StartedChild,
        ender: Ender,
        group: GroupMeter,
        limits: ChildLimits,
        *,
        listen: Listener | None,
        check: Callable[[], None] | None,
        is_complete: Callable[[], bool] | None,
    ) -> None:
        self._child = child
        self._ender = ender
        self._limits = limits
        self._listen, self._check, self._is_complete = listen, check, is_complete
        self._watchdog = Watchdog(
            child.pid,
            group,
            allowed_bytes=limits.allowed_bytes,
            shared_bytes=limits.shared_bytes,
            neighbours=limits.neighbours,
            tree=bool(child.mark),
        )
        self._output: deque[bytes] = deque()
        self._output_bytes = 0
        self._start_s = time.monotonic()
        self._phase: Phase = "start"
        self._phase_start_s = self._start_s
        self._phase_limit_s = limits.phase_s.get("start", PHASE_LIMIT_S)
        self._killed_for: Literal["memory", "deadline", "stop"] | None = None
        self._kill_reason = ""
        self._killed_at = 0.0
        self._dumped_at: float | None = None
        self._late_s: float | None = None
        """Limit that the child exceeded, seconds."""
        self._limit_name = ""
        """Name of that limit, if it has one."""
        self._infrastructure = ""
        self._volunteers = False
        self._result: dict[str, JSON] = {}

    def until_gone(self) -> None:
        poll = select.poll()
        poll.register(self._child.output, select.POLLIN)
        poll.register(self._child.control.fileno(), select.POLLIN)
        if self._child.watch is not None:
            poll.register(self._child.watch, select.POLLIN)
        next_look = 0.0
        os.set_blocking(self._child.output, False)
        while True:
            for descriptor, _ in poll.poll(INTERVAL_S * 1000):
                if descriptor == self._child.output:
                    if not self._drain():
                        poll.unregister(descriptor)
                elif descriptor == self._child.control.fileno():
                    self._read_messages()
                    if self._child.control.closed:
                        poll.unregister(descriptor)
                else:
                    poll.unregister(descriptor)  # the child has ended; the launcher reports how
            try:
                if self._ender.poll(self._child):
                    self._drain()
                    return
            except GuardError as error:
                self._infrastructure = str(error)
                return
            now = time.monotonic()
            if now < next_look:
                continue
            next_look = now + INTERVAL_S * 0.8
            if self._check is not None:
                self._check()
            if self._killed_for is None and self._is_complete is not None and self._is_complete():
                self._kill("stop", "complete")
            elif self._killed_for is None:
                self._look(now)
            elif now - self._killed_at > KILL_LIMIT_S:
                self._kill_without_the_launcher()
                return

    def _look(self, now: float) -> None:
        """Check memory and time. Kill the child if it exceeds a limit."""
        too_far = self._watchdog.look(now)
        if too_far is not None:
            self._kill("memory", too_far)
        elif self._dumped_at is not None:
            if now - self._dumped_at > DUMP_S:
                self._kill("deadline", self._why_late())
        elif self._is_late(now):
            self._dumped_at = now
            self._signal(signal.SIGUSR1)  # faulthandler dumps its stacks

    def end(self) -> None:
        """Whatever happened: kill and reap the child, wait until its memory is free, and remove its names in /dev/shm."""
        if self._child.exit_status is None and not self._infrastructure:
            self._kill("stop", "stopped")
            until = time.monotonic() + BACK_LIMIT_S
            with contextlib.suppress(GuardError):
                while not self._ender.poll(self._child) and time.monotonic() < until:
                    time.sleep(0.001)
        if self._killed_for is None and self._dumped_at is not None and self._child.exit_status == -signal.SIGUSR1:
            # The child had not installed its handler for SIGUSR1 yet.
            self._killed_for, self._kill_reason = "deadline", self._why_late()
        if self._infrastructure and self._watchdog.tree is not None:
            end_orphans(self._watchdog.tree.start_times, self._child.mark, limit_s=BACK_LIMIT_S)
        self._result = _read_result(self._child.directory)
        until = time.monotonic() + BACK_LIMIT_S
        while self._killed_for is not None and not self._watchdog.is_back(now := time.monotonic()) and now < until:
            time.sleep(INTERVAL_S)
        sweep_shared_memory({self._child.pid, *self._watchdog.family})
        self._watchdog.close()
        self._child.close()

    def ending(self, oom_kills: int) -> Ending:
        raised: Raised | None = None
        if "raised" in self._result:
            try:
                raised = Raised.model_validate(self._result["raised"])
            except ValidationError:
                self._result = {}
        layers = ["watchdog", "deadline"]
        missing: list[str] = []
        for name, in_force in (
            ("rlimit-data", self._watchdog.armed),
            ("oom-score", self._volunteers),
            ("own-group", True),
        ):
            (layers if in_force else missing).append(name)
        return Ending(
            returned=self._result.get("returned"),
            has_result="returned" in self._result,
            raised=raised,
            exit_status=self._child.exit_status,
            killed_for=self._killed_for,
            kill_reason=self._kill_reason,
            phase=self._phase,
            phase_limit_s=self._phase_limit_s if self._late_s is None else self._late_s,
            limit_name=self._limit_name,
            output=b"".join(self._output)[-OUTPUT_TAIL_BYTES:].decode(errors="replace"),
            oom_kills=oom_kills,
            armed=self._watchdog.armed,
            peak_anonymous_bytes=self._watchdog.peak_anonymous_bytes,
            peak_hard_bytes=self._watchdog.peak_hard_bytes,
            group_growth_bytes=self._watchdog.peak_hard_bytes - self._watchdog.begin_hard_bytes,
            near_limit=self._watchdog.near_limit,
            swapped_bytes=self._watchdog.swapped_bytes(),
            infrastructure=self._infrastructure,
            wall_s=time.monotonic() - self._start_s,
            layers=tuple(layers),
            missing=tuple(missing),
        )

    def _kill(self, why: Literal["memory", "deadline", "stop"], reason: str) -> None:
        self._killed_for, self._kill_reason, self._killed_at = why, reason, time.monotonic()
        self._ender.kill(self._child)

    def _kill_without_the_launcher(self) -> None:
        """Kill the child if the launcher does not answer (a stopped zygote). It has not reaped the child, so the pid is valid."""
        self._infrastructure = "the process that starts the probes does not respond"
        kill_group(self._child.pid)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the child, and never to another process that has reused its pid."""
        with contextlib.suppress(ProcessLookupError):
            if self._child.watch is not None:
                signal.pidfd_send_signal(self._child.watch, number)
            else:
                os.kill(self._child.pid, number)

    def _is_late(self, now: float) -> bool:
        total = self._limits.total_s
        if total is not None and now - self._start_s > total:
            self._late_s, self._limit_name = total, self._limits.total_name
        elif now - self._phase_start_s > self._phase_limit_s:
            self._late_s = self._phase_limit_s
        return self._late_s is not None

    def _why_late(self) -> str:
        name = self._limit_name
        end = f"when {name} ended" if name else f"after {self._late_s:.1f} s"
        return f"the phase {self._phase!r} was not complete {end}"

    def _drain(self) -> bool:
        """Read the output of the child and keep the end of it. False: the pipe is closed."""
        for _ in range(64):  # then check the memory again, however much is printed
            try:
                data = os.read(self._child.output, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._output.append(data)
            self._output_bytes += len(data)
            while self._output_bytes - len(self._output[0]) >= OUTPUT_TAIL_BYTES:
                self._output_bytes -= len(self._output.popleft())
        return True

    def _read_messages(self) -> None:
        for message in self._child.control.read():
            match read_back(message):
                case PhaseStarted(phase=phase, limit_s=limit_s):
                    self._phase, self._phase_start_s = phase, time.monotonic()
                    self._volunteers = self._volunteers or volunteers(self._child.pid)
                    self._phase_limit_s = self._limits.phase_s.get(phase, PHASE_LIMIT_S if limit_s is None else limit_s)
                case MemberArmRequest(process=process, line=line):
                    self._arm_member(process, line)
                case ArmRequest():
                    self._arm()
                case Unfenced():
                    self._watchdog.armed = False  # only the watchdog is left
                case ListenerMessage(message=content):
                    if self._listen is not None:
                        self._listen(content)
                case None:
                    pass
                case never:
                    assert_never(never)

    def _arm(self) -> None:
        allowed = self._limits.allowed_bytes
        if self._limits.own_fence:
            self._watchdog.armed = True
        elif allowed is not None and self._limits.host_fence:
            self._watchdog.armed = arm_data_limit(self._child.pid, allowed)
        self._child.control.send({"armed": self._watchdog.armed})

    def _arm_member(self, process: int, line: int) -> None:
        """Arm one process of a tree that is ready: it may grow by its share of the remaining growth of the tree."""
        allowed, tree, armed = self._limits.allowed_bytes, self._watchdog.tree, False
        # Only a member of the tree: a limit for process 0 would limit this process.
        if allowed is not None and self._limits.host_fence and tree is not None and tree.has(process):
            now = read_status(process)
            growth_bytes = max(0, allowed - tree.used_bytes(time.monotonic())) // self._limits.processes
            armed = now is not None and arm_data_limit(process, now.hard_bytes + growth_bytes)
        self._child.control.send({"armed": armed, "line": line})


def _read_result(directory: Path) -> dict[str, JSON]:
    """Result of the child. Empty if there is no complete and valid result."""
    path = directory / RESULT_NAME
    try:
        if path.stat().st_size > RESULT_LIMIT_BYTES:
            return {}
        value = json.loads(path.read_bytes(), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not a number")
