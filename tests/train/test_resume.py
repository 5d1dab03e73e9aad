"""A training that is stopped, killed or left without a disk, and what goes on from it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from batchcal.core.errors import BatchcalError, Interrupted, UsageError, exit_code_of
from batchcal.core.progress import Named, Recorded
from batchcal.train.ending.stop_request import StopRequest
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.train.result import TrainingResult
from batchcal.values.training_events import StepEnded, TrainingEvent
from batchcal.workload.task import Task
from tests.support.plans import a_plan
from tests.support.tasks import a_task, cross_entropy
from tests.support.trainings import InOrder, SignalAt, parameters


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stopped_after", [1, 3, 7, 9])
def test_a_resumed_run_matches_an_uninterrupted_run(tmp_path: Path, stopped_after: int, stream: bool) -> None:
    """Seven steps an epoch; dropout makes the generators matter."""

    def fresh() -> Task:
        task = a_task(100, dropout=0.4)
        return replace(task, train_data=InOrder(100)) if stream else task

    plan, checkpoint = a_plan(8, 7), tmp_path / "folder" / "run.pt"
    unstopped = fresh()
    whole = train(unstopped, plan, TrainOptions(epochs=3, seed=2))

    with pytest.raises(Interrupted) as caught:
        train(fresh(), plan, TrainOptions(epochs=3, seed=2), checkpoint=checkpoint, progress=SignalAt("step", stopped_after))
    assert exit_code_of(caught.value) == 143
    assert str(checkpoint) in caught.value.known

    random.seed(99)
    torch.manual_seed(99)
    resumed = fresh()
    result = train(resumed, plan, TrainOptions(epochs=3, seed=2), checkpoint=checkpoint, resume=True)
    assert torch.equal(parameters(resumed), parameters(unstopped))
    assert [epoch.loss for epoch in result.epochs] == [epoch.loss for epoch in whole.epochs]
    assert [epoch.samples for epoch in result.epochs] == [100, 100, 100]
    assert result.resumed_at_epoch == (stopped_after - 1) // 7


def test_an_evaluation_interrupted_by_a_signal_is_repeated_on_resume(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    fired: list[bool] = []

    def once(model: nn.Module, batch: object) -> object:
        if not fired:
            fired.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return None

    task = replace(a_task(20), eval_step=once)
    with pytest.raises(Interrupted) as caught:
        train(task, a_plan(10, eval_batch=4), TrainOptions(epochs=2), checkpoint=checkpoint)
    assert exit_code_of(caught.value) == 130
    result = train(
        replace(a_task(20), eval_step=once), a_plan(10, eval_batch=4), TrainOptions(epochs=2), checkpoint=checkpoint, resume=True
    )
    assert [set(epoch.evaluation) for epoch in result.epochs] == [{"accuracy"}, {"accuracy"}]
    assert [epoch.steps for epoch in result.epochs] == [2, 2]


def test_an_interruption_without_a_checkpoint_reports_an_unsaved_training() -> None:
    with pytest.raises(Interrupted, match="SIGTERM in epoch 0, after step 2") as caught:
        train(a_task(50), a_plan(10), TrainOptions(epochs=2), progress=SignalAt("step", 2))
    assert "this training is not saved" in caught.value.known
    assert "--checkpoint" in caught.value.try_


def test_signal_handlers_are_restored_after_training() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(a_task(20), a_plan(10))
    with pytest.raises(Interrupted):
        train(a_task(20), a_plan(10), progress=SignalAt("step", 1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_repeated_sigterm_counts_as_one_request(tmp_path: Path) -> None:
    """`timeout` signals its child and then its group."""
    checkpoint = tmp_path / "run.pt"

    class Twice(SignalAt):
        def event(self, event: Named, /) -> None:
            super().event(event)
            if event.event_name == self.name and self.left == 0:
                os.kill(os.getpid(), self.number)

    with pytest.raises(Interrupted, match="after step 2") as caught:
        train(a_task(50), a_plan(10), checkpoint=checkpoint, progress=Twice("step", 2))
    assert str(checkpoint) in caught.value.known


def test_a_signal_during_a_save_waits_until_the_save_ends(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    options = TrainOptions(checkpoint_every_s=1e-9)

    class Signals:
        """A buffer that is read when the checkpoint is written."""

        def __call__(self, module: nn.Module, state: dict[str, object], prefix: str, local: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    task = a_task(50)
    task.model.register_state_dict_post_hook(Signals())
    with pytest.raises(Interrupted, match="after step 1") as caught:
        train(task, a_plan(10), options, checkpoint=checkpoint)
    assert str(checkpoint) in caught.value.known
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    assert train(a_task(50), a_plan(10), options, checkpoint=checkpoint, resume=True).epochs[0].samples == 50


def with_temperature() -> tuple[Task, nn.Parameter]:
    """A loss with a parameter that the optimizer holds and the model does not."""
    task, temperature = a_task(50), nn.Parameter(torch.zeros(()))

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, list | tuple)
        inputs, labels = batch
        return nn.functional.cross_entropy(model(inputs) * temperature.exp(), labels)

    optimizer = torch.optim.AdamW([*task.model.parameters(), temperature], lr=0.02)
    return replace(task, optimizer=optimizer, loss=loss), temperature


def test_a_parameter_of_the_loss_is_saved_and_restored(tmp_path: Path) -> None:
    checkpoint, plan = tmp_path / "run.pt", a_plan(5, 5)
    unstopped, expected = with_temperature()
    train(unstopped, plan, TrainOptions(epochs=2))
    stopped, _ = with_temperature()
    with pytest.raises(Interrupted):
        train(stopped, plan, TrainOptions(epochs=2), checkpoint=checkpoint, progress=SignalAt("step", 3))
    resumed, temperature = with_temperature()
    train(resumed, plan, TrainOptions(epochs=2), checkpoint=checkpoint, resume=True)
    assert temperature.item() == expected.item() != 0
    assert torch.equal(parameters(resumed), parameters(unstopped))


def test_a_checkpoint_without_the_parameter_of_the_loss_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    train(a_task(50), a_plan(10), checkpoint=checkpoint)
    task, temperature = with_temperature()
    with pytest.raises(UsageError, match="another model or optimizer") as caught:
        train(task, a_plan(10), TrainOptions(epochs=2), checkpoint=checkpoint, resume=True)
    assert "that are not in the model" in caught.value.known
    assert temperature.item() == 0


def test_an_error_of_the_task_names_the_checkpoint(tmp_path: Path) -> None:
    calls = []

    def fails(model: nn.Module, batch: object) -> Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise ValueError("shapes do not match")
        return cross_entropy(model, batch)

    with pytest.raises(ValueError, match="shapes do not match") as caught:
        train(replace(a_task(50), loss=fails), a_plan(10), checkpoint=tmp_path / "run.pt")
    assert caught.value.__notes__ == [f"the checkpoint is {tmp_path / 'run.pt'}"]


@pytest.mark.parametrize("arrives", ["before", "after", "never"])
def test_a_worker_killed_by_a_stop_signal_counts_as_an_interruption(tmp_path: Path, arrives: str) -> None:
    checkpoint, calls = tmp_path / "run.pt", []
    process = os.getpid()

    def dies(model: nn.Module, batch: object) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            if arrives == "before":
                os.kill(process, signal.SIGTERM)
            elif arrives == "after":
                threading.Timer(0.1, os.kill, (process, signal.SIGTERM)).start()
            raise RuntimeError("DataLoader worker (pid 8) is killed by signal: Terminated. ")
        return cross_entropy(model, batch)

    kind = BatchcalError if arrives == "never" else Interrupted
    with pytest.raises(kind) as caught:
        train(replace(a_task(50), loss=dies), a_plan(10), checkpoint=checkpoint)
    assert exit_code_of(caught.value) == (1 if arrives == "never" else 143)
    assert str(checkpoint) in caught.value.known
    assert "memory" not in str(caught.value)
    assert train(a_task(50), a_plan(10), checkpoint=checkpoint, resume=True).epochs[0].samples == 50


def test_a_second_interrupt_ends_the_training_immediately() -> None:
    def twice(model: nn.Module, batch: object) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # two that are pending at once are one
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return cross_entropy(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(replace(a_task(20), loss=twice), a_plan(10))


def test_training_works_in_a_thread_without_signal_handlers() -> None:
    results: list[TrainingResult] = []
    thread = threading.Thread(target=lambda: results.append(train(a_task(20), a_plan(10))))
    thread.start()
    thread.join(30)
    assert results[0].epochs[0].samples == 20


def test_resuming_a_finished_run_returns_the_same_epochs(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    first = train(a_task(20), a_plan(10), TrainOptions(epochs=2), checkpoint=checkpoint, resume=True)
    assert first.resumed_at_epoch is None, "there was no checkpoint yet"
    again = train(a_task(20), a_plan(10), TrainOptions(epochs=2), checkpoint=checkpoint, resume=True)
    assert again.epochs == first.epochs
    more = train(a_task(20), a_plan(10), TrainOptions(epochs=3), checkpoint=checkpoint, resume=True)
    assert more.epochs[:2] == first.epochs
    assert len(more.epochs) == 3


def test_a_mid_epoch_resume_with_another_seed_or_dataset_is_rejected(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        train(a_task(50), a_plan(10), checkpoint=checkpoint, progress=SignalAt("step", 2))
    with pytest.raises(UsageError, match="seed was 0"):
        train(a_task(50), a_plan(10), TrainOptions(seed=4), checkpoint=checkpoint, resume=True)
    with pytest.raises(UsageError, match="train samples was 50"):
        train(a_task(60), a_plan(10), checkpoint=checkpoint, resume=True)
    result = train(a_task(50), a_plan(5, 5), checkpoint=checkpoint, resume=True)
    assert result.epochs[0].samples == 50, "another split of the same effective batch goes on"


def test_a_resume_with_another_effective_batch_uses_the_remaining_samples(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        train(a_task(50), a_plan(10), checkpoint=checkpoint, progress=SignalAt("step", 2))
    heard = Recorded()
    result = train(a_task(50), a_plan(6), checkpoint=checkpoint, resume=True, progress=heard)
    assert result.epochs[0].samples == 50
    assert [fields["samples_seen"] for name, fields in heard.events if name == "step"] == [26, 32, 38, 44, 50]


def test_the_next_epoch_can_have_another_effective_batch(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    train(a_task(50), a_plan(10), TrainOptions(epochs=1), checkpoint=checkpoint)
    assert train(a_task(50), a_plan(25), TrainOptions(epochs=2), checkpoint=checkpoint, resume=True).epochs[1].steps == 2


def test_a_stop_request_returns_a_result_and_saves_a_checkpoint(tmp_path: Path) -> None:
    checkpoint, wish = tmp_path / "run.pt", StopRequest()

    class AfterThree:
        def event(self, event: TrainingEvent, /) -> None:
            if isinstance(event, StepEnded) and event.step == 3:
                wish.request("q was pressed")

    result = train(a_task(80), a_plan(10), checkpoint=checkpoint, wish=wish, progress=AfterThree())
    assert (result.stopped_early, result.stop_reason, result.epochs) == (True, "q was pressed", ())
    whole, resumed = a_task(80), a_task(80)
    train(whole, a_plan(10))
    train(resumed, a_plan(10), checkpoint=checkpoint, resume=True)
    assert torch.equal(parameters(resumed), parameters(whole))


def test_an_unwritable_checkpoint_does_not_end_the_training(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("", encoding="ascii")
    heard = Recorded()
    result = train(a_task(20), a_plan(10), TrainOptions(epochs=2), checkpoint=in_the_way / "run.pt", progress=heard)
    assert len(result.epochs) == 2
    assert result.not_saved is not None
    assert "could not be written" in result.not_saved
    assert [name for name, _ in heard.events].count("notice") == 3, "the last save is retried"


class Killed(BaseException):
    """Nothing catches it, and nothing is saved for it."""


class KilledAt:
    """Ends the process, so to speak, at the n-th step."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def event(self, event: TrainingEvent, /) -> None:
        self.left -= isinstance(event, StepEnded)
        if isinstance(event, StepEnded) and self.left == 0:
            raise Killed


@pytest.mark.parametrize("killed_at", [2, 5, 10])
def test_a_killed_run_resumes_from_its_last_mid_epoch_checkpoint(tmp_path: Path, killed_at: int) -> None:
    """Seven steps an epoch; the step in which it was killed is run again."""
    plan, checkpoint = a_plan(8, 7), tmp_path / "run.pt"
    often = TrainOptions(epochs=2, seed=2, checkpoint_every_s=1e-9)
    unstopped, heard = a_task(100, dropout=0.4), Recorded()
    train(unstopped, plan, TrainOptions(epochs=2, seed=2))
    with pytest.raises(Killed):
        train(a_task(100, dropout=0.4), plan, often, checkpoint=checkpoint, progress=KilledAt(killed_at))
    resumed = a_task(100, dropout=0.4)
    train(resumed, plan, often, checkpoint=checkpoint, resume=True, progress=heard)
    assert [fields["global_step"] for name, fields in heard.events if name == "step"] == list(range(killed_at, 15))
    assert torch.equal(parameters(resumed), parameters(unstopped))


def test_mid_epoch_checkpoints_respect_the_requested_interval(tmp_path: Path) -> None:
    heard = Recorded()
    train(a_task(100), a_plan(8, 7), TrainOptions(epochs=2), checkpoint=tmp_path / "run.pt", progress=heard)
    assert [name for name, _ in heard.events].count("checkpoint_saved") == 2, "after every epoch, and not every ten minutes"
