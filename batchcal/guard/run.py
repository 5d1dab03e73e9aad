"""Runs one job in one child and watches it until it is gone: one child, one reply or one cause of death."""

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
from batchcal.guard.child import RESULT_NAME
from batchcal.guard.ending import Ending
from batchcal.guard.fence import arm_data_limit, volunteers
from batchcal.guard.kill import end_orphans, kill_group
from batchcal.guard.launch import Ender, FunctionJob, Launcher, Started
from batchcal.guard.messages import ArmRequest, ListenerMessage, MemberArmRequest, PhaseStarted, Unfenced, read_back
from batchcal.guard.outcome import Phase
from batchcal.guard.report import Raised
from batchcal.guard.shared_names import sweep_shared_memory
from batchcal.guard.watchdog import INTERVAL_S, MemoryGroup, Watchdog
from batchcal.guard.wire import JSON, Message
from batchcal.machine.meters import read_status

OUTPUT_TAIL_BYTES: Final = 64 * 1024
RESULT_LIMIT_BYTES: Final = 64 << 20
DUMP_S: Final = 0.3
"""How long a child that is past its deadline may take to say where it stands."""
KILL_LIMIT_S: Final = 5.0
"""A launcher that does not say within this time that a killed child is gone has stopped itself."""
BACK_LIMIT_S: Final = 3.0
"""A SIGKILLed torch process gives its memory back within 45-84 ms; a loaded machine takes longer."""
PHASE_LIMIT_S: Final = 120.0
"""Deadline of a phase for which neither side names one."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may take. Seconds of wall time, bytes of demand."""

    allowed_bytes: int | None = None
    """Demand of the child at which the fence is armed, once the child asks for it. None: the watchdog alone."""
    shared_bytes: int = 0
    """Demand that the child has in common with the process that it was forked from: the memory group does not grow by it."""
    phase_s: Mapping[str, float] = field(default_factory=dict)
    """Deadline by phase; a phase that is not named has what the child says, or `PHASE_LIMIT_S`."""
    total_s: float | None = None
    """Deadline over all phases."""
    total_name: str = ""
    """Name of that deadline for the user: `the time limit of 20 s (--time-limit)`."""
    neighbours: bool = False
    """Others in the memory group grow and shrink meanwhile: what the group holds more tells nothing about this child."""
    host_fence: bool = True
    """False where the address space is not ours to limit (a CUDA context): the watchdog alone."""
    processes: int = 1
    """Of a tree: processes that will report that they are ready. They share what the tree may still grow by."""
    own_fence: bool = False
    """The child keeps a data limit for itself, which it moves as it runs: it is trusted with that once it says that it holds."""


Listener = Callable[[Message], None]


def run(
    job: FunctionJob,
    launcher: Launcher,
    group: MemoryGroup,
    limits: Limits,
    listen: Listener | None = None,
    *,
    check: Callable[[], None] | None = None,
) -> Ending:
    """Runs `job` to its end, whatever that is. When this returns or raises, the child and all it started are gone.

    Args:
        listen: told of what the child tells. Must be quick: nobody looks at memory meanwhile.
        check: called at every look; may raise to end the child.

    Raises:
        GuardError: no child could be started. (What happens to a started child is never an exception.)
    """
    kills_before = group.oom_kills()
    return watch_child(launcher.start(job), launcher, group, limits, listen, check=check, kills_before=kills_before)


def watch_child(
    child: Started,
    ender: Ender,
    group: MemoryGroup,
    limits: Limits,
    listen: Listener | None = None,
    *,
    check: Callable[[], None] | None = None,
    kills_before: int | None = None,
) -> Ending:
    """Watches a child that was started, as `run` does.

    Args:
        ender: of who started it.
        kills_before: kernel OOM kills in the group before it was.
    """
    watch = _Watch(child, ender, group, limits, listen=listen, check=check)
    try:
        watch.until_gone()
    finally:
        watch.end()
    kills_after = group.oom_kills()
    return watch.ending((kills_after or 0) - (kills_before or 0))


class _Watch:
    """The state of watching one child."""

    def __init__(
        self,
        child: Started,
        ender: Ender,
        group: MemoryGroup,
        limits: Limits,
        *,
        listen: Listener | None,
        check: Callable[[], None] | None,
    ) -> None:
        self._child = child
        self._ender = ender
        self._limits = limits
        self._listen, self._check = listen, check
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
        self._began = time.monotonic()
        self._phase: Phase = "start"
        self._phase_began = self._began
        self._phase_limit_s = limits.phase_s.get("start", PHASE_LIMIT_S)
        self._killed_for: Literal["memory", "deadline", "stop"] | None = None
        self._kill_reason = ""
        self._killed_at = 0.0
        self._dumped_at: float | None = None
        self._late_s: float | None = None
        """The limit that it did not keep to."""
        self._limit_name = ""
        """Name of that limit, where it has one."""
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
                    self._hear()
                    if self._child.control.closed:
                        poll.unregister(descriptor)
                else:
                    poll.unregister(descriptor)  # it has ended; the launcher will say how
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
            if self._killed_for is None:
                self._look(now)
            elif now - self._killed_at > KILL_LIMIT_S:
                self._kill_without_the_launcher()
                return

    def _look(self, now: float) -> None:
        """At memory and clock; kills what goes too far."""
        too_far = self._watchdog.look(now)
        if too_far is not None:
            self._kill("memory", too_far)
        elif self._dumped_at is not None:
            if now - self._dumped_at > DUMP_S:
                self._kill("deadline", self._why_late())
        elif self._is_late(now):
            self._dumped_at = now
            self._signal(signal.SIGUSR1)  # faulthandler says where it stands

    def end(self) -> None:
        """Whatever happened: the child is killed, reaped, its memory back, its names swept."""
        if self._child.exit_status is None and not self._infrastructure:
            self._kill("stop", "stopped")
            until = time.monotonic() + BACK_LIMIT_S
            with contextlib.suppress(GuardError):
                while not self._ender.poll(self._child) and time.monotonic() < until:
                    time.sleep(0.001)
        if self._killed_for is None and self._dumped_at is not None and self._child.exit_status == -signal.SIGUSR1:
            # It was too young to know what we asked.
            self._killed_for, self._kill_reason = "deadline", self._why_late()
        if self._infrastructure and self._watchdog.tree is not None:
            end_orphans(self._watchdog.tree.seen, self._child.mark, limit_s=BACK_LIMIT_S)
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
        for name, there in (
            ("rlimit-data", self._watchdog.armed),
            ("oom-score", self._volunteers),
            ("own-group", True),
        ):
            (layers if there else missing).append(name)
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
            wall_s=time.monotonic() - self._began,
            layers=tuple(layers),
            missing=tuple(missing),
        )

    def _kill(self, why: Literal["memory", "deadline", "stop"], reason: str) -> None:
        self._killed_for, self._kill_reason, self._killed_at = why, reason, time.monotonic()
        self._ender.kill(self._child)

    def _kill_without_the_launcher(self) -> None:
        """It does not answer (a zygote that was stopped), so it has not reaped the child either: the pid is still the child's."""
        self._infrastructure = "the process that batchcal forks its probes from does not answer"
        kill_group(self._child.pid)

    def _signal(self, number: signal.Signals) -> None:
        """To the child and to no stranger that got its pid meanwhile."""
        with contextlib.suppress(ProcessLookupError):
            if self._child.watch is not None:
                signal.pidfd_send_signal(self._child.watch, number)
            else:
                os.kill(self._child.pid, number)

    def _is_late(self, now: float) -> bool:
        total = self._limits.total_s
        if total is not None and now - self._began > total:
            self._late_s, self._limit_name = total, self._limits.total_name
        elif now - self._phase_began > self._phase_limit_s:
            self._late_s = self._phase_limit_s
        return self._late_s is not None

    def _why_late(self) -> str:
        name = self._limit_name
        return f"still in {self._phase} when {name} ended" if name else f"still in {self._phase} after {self._late_s:.1f} s"

    def _drain(self) -> bool:
        """Takes what the child printed, keeping the end. False: the pipe is closed."""
        for _ in range(64):  # then look at the memory again, however much is printed
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

    def _hear(self) -> None:
        for message in self._child.control.read():
            match read_back(message):
                case PhaseStarted(phase=phase, limit_s=limit_s):
                    self._phase, self._phase_began = phase, time.monotonic()
                    self._volunteers = self._volunteers or volunteers(self._child.pid)
                    self._phase_limit_s = self._limits.phase_s.get(phase, PHASE_LIMIT_S if limit_s is None else limit_s)
                case MemberArmRequest(process=process, line=line):
                    self._arm_member(process, line)
                case ArmRequest():
                    self._arm()
                case Unfenced():
                    self._watchdog.armed = False  # the watchdog is alone
                case ListenerMessage(message=told):
                    if self._listen is not None:
                        self._listen(told)
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
        """One process of a tree is ready: it may grow by its share of what the tree has left."""
        allowed, tree, armed = self._limits.allowed_bytes, self._watchdog.tree, False
        # Only a member of ours: to limit process 0 would be to limit ourselves.
        if allowed is not None and self._limits.host_fence and tree is not None and tree.has(process):
            now = read_status(process)
            left = max(0, allowed - tree.held_bytes(time.monotonic())) // self._limits.processes
            armed = now is not None and arm_data_limit(process, now.hard_bytes + left)
        self._child.control.send({"armed": armed, "line": line})


def _read_result(directory: Path) -> dict[str, JSON]:
    """The child's result, or nothing where there is no whole and sane one."""
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
