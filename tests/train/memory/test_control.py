"""Before a batch the room is looked at, after it the peak: what follows is told, and the training stays what it is."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from batchcal.core.clock import ManualClock, SystemClock
from batchcal.core.errors import NothingFits, UserCodeError
from batchcal.core.progress import Recorded
from batchcal.core.units import GIB, MIB
from batchcal.machine.peak_meter import PeakMeter
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group
from batchcal.train.loop import train
from batchcal.train.memory.available import WORKERS_S, AvailableMemory, HostMeter, ShareMeter, WorkersMemory
from batchcal.train.memory.control import MemoryControl
from batchcal.train.memory.monitor import MemoryMonitor
from batchcal.train.memory.predictor import straight_line
from batchcal.train.options import TrainOptions
from batchcal.train.sizes.controller import ControlSettings
from batchcal.train.sizes.scheduler import GradientAccumulationScheduler
from batchcal.workload.task import Task
from tests.support.plans import a_plan
from tests.support.tasks import a_task, cross_entropy

CPU = torch.device("cpu")


class Told:
    """A meter that says what it is told to say."""

    def __init__(self, *, limit: int = 4 * GIB, used: int = 500 * MIB, own: int = 400 * MIB) -> None:
        self.room = AvailableMemory(limit_bytes=limit, used_bytes=used, own_bytes=own)
        self.closed = False

    def read(self) -> AvailableMemory:
        return self.room

    def limit_bytes(self) -> int:
        return self.room.limit_bytes

    def own_bytes(self) -> int:
        return self.room.own_bytes

    def close(self) -> None:
        self.closed = True


def a_control(task: Task, meter: Told, heard: Recorded, *, micro_batch: int = 16, sample_bytes: float = 40.0) -> MemoryControl:
    """Predicts 400 MiB without a sample and 1,400 MiB with 16 of them."""
    return MemoryControl(
        task,
        CPU,
        monitor=MemoryMonitor(meter, SystemClock()),
        peak=PeakMeter(CPU),
        predictor=straight_line(400 * MIB, 16, 1400 * MIB, sample_bytes),
        scheduler=GradientAccumulationScheduler(micro_batch),
        settings=ControlSettings(),
        clock=SystemClock(),
        progress=heard,
    )


def a_batch(samples: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(3)
    return MicroBatch([torch.randn(samples, 8, generator=generator), torch.zeros(samples, dtype=torch.int64)], samples)


def test_a_batch_predicted_not_to_fit_is_split_before_it_runs() -> None:
    task, heard = a_task(), Recorded()
    control = a_control(task, Told(limit=1200 * MIB), heard)
    seen: list[int] = []

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, list)
        seen.append(len(batch[0]))
        return cross_entropy(model, batch)

    result = run_group(replace(task, loss=loss), [a_batch(16)], device=CPU, scaler=None, guard=control)
    assert seen == [8, 8], "16 would take 1,400 MiB and there are about 1,080"
    assert (result.samples, result.micro_batches, result.largest) == (16, 2, 8)
    assert [(name, fields["samples"], fields["action"]) for name, fields in heard.events if name == "recovered"] == [
        ("recovered", 16, "split")
    ]
    assert [(fields["was"], fields["now"]) for name, fields in heard.events if name == "resized"] == [(16, 8)]
    assert control.scheduler.allowed(range(16)) == 8
    assert control.recoveries == 1


def test_no_event_is_reported_if_memory_is_sufficient() -> None:
    task, heard = a_task(), Recorded()
    control = a_control(task, Told(), heard)
    run_group(task, [a_batch(16)], device=CPU, scaler=None, guard=control)
    assert heard.events == []
    assert control.take_memory().peak_bytes > 0
    assert control.take_memory().peak_bytes == 0, "taken once"


def test_memory_use_of_another_process_reduces_the_micro_batch_with_a_reason() -> None:
    task, heard, meter = a_task(), Recorded(), Told()
    control = a_control(task, meter, heard)
    control.scheduler.set(15)
    own = PeakMeter(CPU).end()
    meter.room = AvailableMemory(limit_bytes=own + 1800 * MIB, used_bytes=own + 1700 * MIB, own_bytes=own)
    control.predictor.observe(control.composition(a_batch(4)), own)
    for _ in range(3):
        run_group(task, [a_batch(4)], device=CPU, scaler=None, guard=control)
    (change,) = [fields for name, fields in heard.events if name == "resized"]
    assert (change["was"], change["now"]) == (15, 7)
    assert "of the memory limit" in str(change["why"])


def test_an_optimizer_step_without_enough_memory_is_rejected_before_it_starts() -> None:
    task, heard = a_task(), Recorded()
    meter = Told(limit=500 * MIB, used=490 * MIB, own=490 * MIB)
    control = a_control(task, meter, heard)
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    with pytest.raises(NothingFits, match=r"optimizer's step may need .* only 0 B are free"):
        run_group(task, [a_batch(1)], device=CPU, scaler=None, guard=control)
    assert not control.in_update() or all(
        torch.equal(one, other) for one, other in zip(before, task.model.parameters(), strict=True)
    )
    assert task.optimizer.state == {}


def test_a_rejected_optimizer_step_leaves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(control: MemoryControl) -> None:
        if control._optimizer.state:
            raise NothingFits("the optimizer's step may need 9 GiB, but only 0 B are free", known="cut off it would leave a mess")

    checkpoint = tmp_path / "run.pt"
    with monkeypatch.context() as patch, pytest.raises(NothingFits, match=rf"the checkpoint is {checkpoint}"):
        patch.setattr(MemoryControl, "before_update", refuse)
        train(a_task(40), a_plan(10), checkpoint=checkpoint)
    resumed, whole = a_task(40), a_task(40)
    assert train(resumed, a_plan(10), checkpoint=checkpoint, resume=True).epochs[0].samples == 40
    train(whole, a_plan(10))
    assert all(torch.equal(one, other) for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_or_infinite_loss_stops_with_a_checkpoint_from_before_the_step(tmp_path: Path, value: float) -> None:
    calls: list[int] = []

    def loss(model: nn.Module, batch: object) -> Tensor:
        calls.append(1)
        return cross_entropy(model, batch) * (value if len(calls) == 4 else 1.0)

    checkpoint = tmp_path / "run.pt"
    broken = replace(a_task(40), loss=loss)
    with pytest.raises(UserCodeError, match=rf"(?s)is {value}.*the parameters were not updated.*the checkpoint is {checkpoint}"):
        train(broken, a_plan(10), checkpoint=checkpoint)
    assert all(bool(parameter.isfinite().all()) for parameter in broken.model.parameters())
    resumed, whole = a_task(40), a_task(40)
    assert train(resumed, a_plan(10), checkpoint=checkpoint, resume=True).epochs[0].samples == 40
    train(whole, a_plan(10))
    assert all(torch.equal(one, other) for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))


def test_a_micro_batch_with_zero_weight_does_not_change_the_step() -> None:
    """All of its tokens are padding: its mean is no number."""

    def weight(batch: object) -> float:
        assert isinstance(batch, list)
        return float((batch[1] >= 0).sum())

    def masked(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, list)
        return nn.functional.cross_entropy(model(batch[0]), batch[1], ignore_index=-1)

    inputs = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    real = MicroBatch([inputs, torch.zeros(8, dtype=torch.int64)], 8)
    empty = MicroBatch([inputs, torch.full((8,), -1)], 8)
    tasks = [replace(a_task(), loss=masked, weight_of=weight) for _ in range(2)]
    with_empty = run_group(tasks[0], [empty, real, empty], device=CPU, scaler=None)
    alone = run_group(tasks[1], [real], device=CPU, scaler=None)
    assert with_empty.loss == alone.loss
    for pair in zip(tasks[0].model.parameters(), tasks[1].model.parameters(), strict=True):
        torch.testing.assert_close(*pair)


def test_a_small_start_grows_to_the_plan_with_the_same_training_result() -> None:
    grown, plain = a_task(400), a_task(400)
    heard = Recorded()
    result = train(grown, a_plan(16), TrainOptions(epochs=3, start_micro_batch=2, fence=False), progress=heard)
    sizes = [(fields["was"], fields["now"]) for name, fields in heard.events if name == "resized"]
    assert sizes == [(2, 4), (4, 8), (8, 16)]
    assert [epoch.samples for epoch in result.epochs] == [400] * 3
    steps = [fields for name, fields in heard.events if name == "step"]
    assert steps[0]["micro_batch"] == 2
    assert steps[0]["micro_batches"] == 8
    assert steps[-1]["micro_batch"] == 16
    train(plain, a_plan(16), TrainOptions(epochs=3))
    for one, other in zip(grown.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_monitor_reports_current_peak_average_and_trend() -> None:
    class Ticking(SystemClock):
        seconds = 0.0

        def monotonic(self) -> float:
            return self.seconds

    clock, meter = Ticking(), Told()
    monitor = MemoryMonitor(meter, clock)
    for number, own in enumerate((100, 300, 200)):
        clock.seconds = float(number)
        meter.room = AvailableMemory(limit_bytes=1000, used_bytes=400 + 10 * number, own_bytes=own)
        monitor.read()
    trend = monitor.trend()
    assert (trend.current_bytes, trend.peak_bytes, trend.average_bytes, trend.readings) == (200, 300, 200.0, 3)
    assert trend.trend_bytes_per_s == pytest.approx(10.0)


def test_an_entered_monitor_reads_in_the_background_and_closes_the_meter() -> None:
    meter = Told()
    with MemoryMonitor(meter, SystemClock(), interval_s=0.001) as monitor:
        while monitor.trend().readings < 5:
            pass
    assert meter.closed


def test_the_monitor_reads_rarely_far_from_the_limit_and_detects_a_lower_limit() -> None:
    meter = Told(limit=4 * GIB)
    with MemoryMonitor(meter, SystemClock(), interval_s=0.001) as monitor:
        time.sleep(0.2)
        assert monitor.trend().readings <= 4
        meter.room = AvailableMemory(limit_bytes=GIB, used_bytes=900 * MIB, own_bytes=400 * MIB)
        assert monitor.available().limit_bytes == GIB
        before = monitor.trend().readings
        meter.room = AvailableMemory(limit_bytes=GIB, used_bytes=GIB, own_bytes=400 * MIB)
        deadline = time.monotonic() + 30
        while monitor.trend().readings < before + 20 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert monitor.trend().readings >= before + 20


def test_the_memory_limit_is_not_read_while_the_meter_opens_its_files() -> None:
    class Opening(Told):
        opening = False
        asked_meanwhile = 0

        def read(self) -> AvailableMemory:
            self.opening = True
            time.sleep(0.001)
            self.opening = False
            return super().read()

        def limit_bytes(self) -> int:
            self.asked_meanwhile += self.opening
            return super().limit_bytes()

    meter = Opening(limit=GIB, used=GIB)
    with MemoryMonitor(meter, SystemClock(), interval_s=0.001) as monitor:
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            monitor.available()
    assert meter.asked_meanwhile == 0


def test_a_monitor_that_is_not_running_reads_at_each_request() -> None:
    meter = Told()
    monitor = MemoryMonitor(meter, SystemClock())
    monitor.read()
    meter.room = AvailableMemory(limit_bytes=4 * GIB, used_bytes=3 * GIB, own_bytes=GIB)
    assert monitor.available().used_bytes == 3 * GIB


def test_a_memory_share_limits_the_available_memory() -> None:
    host = Told(limit=4 * GIB, used=900 * MIB, own=400 * MIB)
    meter = ShareMeter(host, GIB)
    assert meter.read() == AvailableMemory(limit_bytes=GIB, used_bytes=400 * MIB, own_bytes=400 * MIB), (
        "what others hold is not its own"
    )
    assert meter.limit_bytes() == GIB
    host.room = AvailableMemory(limit_bytes=2 * GIB, used_bytes=1900 * MIB, own_bytes=400 * MIB)
    assert meter.limit_bytes() == 2 * GIB, "another limit than was read: it is to be read anew"
    assert meter.read() == host.room, "less is free than its share"
    assert meter.limit_bytes() == 2 * GIB
    meter.close()
    assert host.closed


def test_the_memory_of_workers_counts_towards_a_share() -> None:
    meter = ShareMeter(Told(limit=4 * GIB, used=900 * MIB, own=400 * MIB), GIB, lambda: 300 * MIB)
    assert meter.read() == AvailableMemory(limit_bytes=GIB, used_bytes=700 * MIB, own_bytes=400 * MIB)
    crowded = Told(limit=GIB, used=900 * MIB, own=400 * MIB)
    assert ShareMeter(crowded, GIB, lambda: 300 * MIB).read() == crowded.room, "the host's limit counts the workers, too"


@pytest.mark.child
def test_the_memory_of_worker_processes_is_read_at_an_interval() -> None:
    clock = ManualClock(datetime(2026, 1, 31, tzinfo=UTC))
    memory = WorkersMemory(clock)
    before = memory.bytes()  # other tests keep processes that start children
    hold = "import sys; held = bytearray(64 << 20); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        assert memory.bytes() == before, "it is read every few seconds"
        clock.move(WORKERS_S)
        assert 64 * MIB < memory.bytes() - before < 128 * MIB


def test_the_memory_of_this_process_is_part_of_the_used_memory() -> None:
    meter = HostMeter(SystemClock())
    room = meter.read()
    held = bytearray(64 * MIB)
    after = meter.read()
    meter.close()
    assert 0 < room.own_bytes <= room.used_bytes <= room.limit_bytes
    assert after.own_bytes - room.own_bytes > 60 * MIB
    del held


class InOrder(IterableDataset[object]):
    def __iter__(self) -> Iterator[object]:
        data = a_task(64).train_data
        return (data[index] for index in range(64))


def test_batches_of_a_stream_are_split_to_the_allowed_size() -> None:
    heard = Recorded()
    streamed = replace(a_task(), train_data=InOrder())
    result = train(streamed, a_plan(16), TrainOptions(start_micro_batch=4, fence=False), progress=heard)
    steps = [fields for name, fields in heard.events if name == "step"]
    assert (steps[0]["micro_batch"], steps[0]["micro_batches"]) == (4, 4)
    assert result.epochs[0].samples == 64
    assert result.recoveries == 0, "it is no recovery: nothing went wrong"


def test_a_sample_larger_than_memory_is_reported_before_training() -> None:
    task, heard = a_task(20), Recorded()
    sized = replace(task, size_of=[2.0 if index == 7 else 1.0 for index in range(20)])
    predictor = straight_line(1, 1, 1 << 50, 40.0)
    with pytest.raises(NothingFits, match="sample 7 of the training data is too large"):
        train(sized, a_plan(10), predictor=predictor, progress=heard)
    assert heard.events == []


class Short(IterableDataset[object]):
    """Its length is that of the file, whose broken lines it leaves out."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return 64

    def __iter__(self) -> Iterator[object]:
        data = a_task(64).train_data
        return (data[index] for index in range(self.samples))


@pytest.mark.parametrize(("samples", "reported"), [(40, 1), (64, 0)])
def test_a_stream_that_ends_before_its_length_is_reported(samples: int, reported: int) -> None:
    heard = Recorded()
    train(replace(a_task(), train_data=Short(samples)), a_plan(16), TrainOptions(fence=False), progress=heard)
    notices = [str(fields["text"]) for name, fields in heard.events if name == "notice" and "ended after" in str(fields["text"])]
    assert len(notices) == reported
    assert all(text.startswith("the stream Short ended after 40 samples, but its length is 64") for text in notices)


class RunsOut(Dataset[object]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> object:
        raise MemoryError("cannot allocate")


@pytest.mark.parametrize(
    ("planned_bytes", "try_"), [(MIB, "limit the data that your code keeps"), (1 << 50, "a larger --margin")]
)
def test_an_out_of_memory_error_between_steps_reports_growth_above_the_plan(planned_bytes: int, try_: str) -> None:
    """Before, a dataset whose cache filled the memory was sent to --margin."""
    plan = a_plan(16, predicted_peak_bytes=planned_bytes)
    predictor = straight_line(1 << 27, 16, 1 << 28, 8.0)
    with pytest.raises(NothingFits, match="memory ran out between two steps") as raised:
        train(replace(a_task(), train_data=RunsOut()), plan, TrainOptions(fence=False), predictor=predictor)
    assert raised.value.try_.startswith(try_)
    assert ("some code keeps the data" in raised.value.known) == (planned_bytes == MIB)
