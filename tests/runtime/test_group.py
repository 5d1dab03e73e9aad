"""One optimizer step over a group of micro-batches (that it equals the undivided step: tests/test_undivided.py)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.core.errors import UsageError
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import Passes, run_group
from batchcal.workload.step import make_scaler, prepare
from batchcal.workload.task import Task
from tests.support.tasks import a_task, cross_entropy, unpacked

CPU = torch.device("cpu")


def in_double(task: Task) -> Task:
    task.model.double()
    return task


def batches(*sizes: int) -> Iterator[MicroBatch]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 8, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (200,), generator=generator)
    at = 0
    for size in sizes:
        yield MicroBatch([inputs[at : at + size], labels[at : at + size]], size)
        at += size


def parameters(task: Task) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()])


def test_the_result_has_the_sample_count_and_loss_of_the_undivided_batch() -> None:
    divided, whole = (run_group(in_double(a_task()), batches(*sizes), device=CPU, scaler=None) for sizes in ((25, 40, 32), (97,)))
    assert (divided.samples, divided.weight, divided.micro_batches, divided.largest) == (97, 97.0, 3, 40)
    assert divided.loss == pytest.approx(whole.loss, rel=1e-12)


@pytest.mark.usefixtures("quick_collections")
def test_no_micro_batch_is_kept_in_memory_while_the_next_is_made() -> None:
    class Watched:
        """A batch whose end can be seen."""

    alive: weakref.WeakSet[Watched] = weakref.WeakSet()
    task = a_task()

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, Watched)
        return cross_entropy(model, [torch.randn(4, 8), torch.tensor([0, 1, 2, 0])])

    def made() -> Iterator[MicroBatch]:
        for _ in range(5):
            gc.collect()
            assert not alive, "the one before is still held"
            batch = Watched()
            alive.add(batch)
            held = [MicroBatch(batch, 4)]
            del batch
            yield held.pop()

    assert run_group(replace(task, loss=loss), made(), device=CPU, scaler=None).micro_batches == 5


def test_gradients_are_clear_after_a_step() -> None:
    task = a_task()
    task.model.double()
    run_group(task, batches(5, 5), device=CPU, scaler=None)
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_an_empty_group_is_rejected_without_a_step() -> None:
    task = a_task()
    before = parameters(task)
    with pytest.raises(ValueError, match="at least one micro-batch"):
        run_group(task, iter(()), device=CPU, scaler=None)
    assert torch.equal(before, parameters(task))


def test_a_group_with_zero_weight_is_skipped_and_reported() -> None:
    task = in_double(replace(a_task(), weight_of=lambda batch: 0.0))
    before = parameters(task)
    result = run_group(task, batches(5), device=CPU, scaler=None)
    assert (result.skipped, result.weight, result.loss, result.samples) == ("no-weight", 0.0, 0.0, 5)
    assert torch.equal(before, parameters(task))


def constant_without_label(model: nn.Module, batch: object) -> Tensor:
    """As detection heads do: nothing is labelled, and the loss is a constant. Label 0 is none."""
    inputs, labels = unpacked(batch)
    if not (labels > 0).any():
        return torch.tensor(0.0, dtype=inputs.dtype)
    return cross_entropy(model, [inputs, labels])


def test_a_micro_batch_with_a_constant_loss_adds_a_zero_gradient() -> None:
    """The group is that of a plain loop that leaves `backward` out for it."""
    task, plain = (in_double(replace(a_task(), loss=constant_without_label)) for _ in range(2))
    (first,) = batches(20)
    inputs, labels = unpacked(first.batch)
    unlabelled = MicroBatch([inputs, torch.zeros_like(labels)], 20)
    labelled = MicroBatch([inputs, labels.clamp_min(1)], 20)
    result = run_group(task, [unlabelled, labelled, unlabelled], device=CPU, scaler=None)
    (constant_without_label(plain.model, labelled.batch) / 3).backward()
    plain.optimizer.step()
    torch.testing.assert_close(parameters(task), parameters(plain))
    assert result.skipped is None


def test_a_group_without_a_gradient_is_skipped_and_reported() -> None:
    task = in_double(replace(a_task(), loss=constant_without_label))
    before = parameters(task)
    (first,) = batches(20)
    inputs, labels = unpacked(first.batch)
    result = run_group(task, [MicroBatch([inputs, torch.zeros_like(labels)], 20)], device=CPU, scaler=None)
    assert (result.skipped, result.loss, result.weight) == ("no-gradient", 0.0, 20.0)
    assert torch.equal(before, parameters(task))


ARRIVED: list[float] = []
"""What each loss was multiplied with before its backward pass."""


def watched(model: nn.Module, batch: object) -> Tensor:
    inputs, labels = unpacked(batch)
    loss = functional.cross_entropy(model(inputs.float()), labels)
    loss.register_hook(lambda gradient: ARRIVED.append(float(gradient)))
    return loss


def scaled(sizes: Sequence[int], *, weight_of: Callable[[object], float] | None = None, known: bool = True) -> list[float]:
    """What the loss of each micro-batch is multiplied with, without the scaler's own factor."""
    ARRIVED.clear()
    task = replace(a_task(), loss=watched, autocast=torch.float16, weight_of=weight_of)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    run_group(task, list(batches(*sizes)) if known else batches(*sizes), device=CPU, scaler=scaler)
    return list(ARRIVED)


def test_float16_losses_are_scaled_as_in_a_plain_loop() -> None:
    """There each loss is divided by the number of micro-batches, whatever the samples are."""
    assert scaled((64,)) == [1.0]
    assert scaled((16,) * 4) == pytest.approx([0.25] * 4)
    assert scaled((25, 25, 25, 25, 3)) == pytest.approx([25 / 103] * 4 + [3 / 103])


def test_weights_unknown_in_advance_never_increase_the_loss() -> None:
    assert max(scaled((16,) * 4, known=False)) == 1.0
    weights = iter([1.0, 500.0, 2000.0])
    assert max(scaled((16,) * 3, weight_of=lambda batch: next(weights))) <= 1.0


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 500.0, 2000.0), (7.0, 0.0, 1.0)])
def test_a_step_with_a_grad_scaler_is_exact_for_any_weights(weights: tuple[float, ...]) -> None:
    """The unit is raised in the middle of a group; what was added before is scaled down with it."""
    task, plain = (in_double(replace(a_task(), loss=cross_entropy)) for _ in range(2))
    left = iter(weights)
    task = replace(task, weight_of=lambda batch: next(left))
    task.optimizer.param_groups[0]["eps"] = 1e-3
    plain.optimizer.param_groups[0]["eps"] = 1e-3
    run_group(task, list(batches(8, 8, 8)), device=CPU, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    for weight, micro_batch in zip(weights, batches(8, 8, 8), strict=True):
        (cross_entropy(plain.model, micro_batch.batch) * (weight / sum(weights))).backward()
    plain.optimizer.step()
    torch.testing.assert_close(parameters(task), parameters(plain), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("size", "parts"), [(512, 1), (512, 4), (2048, 8)])
def test_float16_training_skips_as_many_steps_as_a_plain_loop(size: int, parts: int) -> None:
    """A loss whose gradients overflow at torch's first scale."""

    def large(model: nn.Module, batch: object) -> Tensor:
        inputs, labels = unpacked(batch)
        return 40 * functional.cross_entropy(model(inputs.float()).float(), labels)

    inputs = torch.randn(size, 8, generator=torch.Generator().manual_seed(3))
    group = [[inputs[part::parts], torch.arange(size)[part::parts] % 3] for part in range(parts)]
    skipped, scales = {}, {}
    for name in ("batchcal", "plain"):
        task = replace(a_task(), loss=large, autocast=torch.float16)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        skipped[name] = 0
        for _ in range(12):
            before = parameters(task)
            if name == "batchcal":
                result = run_group(task, [MicroBatch(one, size // parts) for one in group], device=CPU, scaler=scaler)
                assert (result.skipped == "overflow") == torch.equal(before, parameters(task))
            else:
                for one in group:
                    with torch.autocast("cpu", dtype=torch.float16):
                        loss = large(task.model, one)
                    scaler.scale(loss / parts).backward()
                scaler.step(task.optimizer)
                scaler.update()
                task.optimizer.zero_grad()
            skipped[name] += torch.equal(before, parameters(task))
        scales[name] = scaler.get_scale()
    assert skipped["batchcal"] == skipped["plain"] > 0
    assert scales["batchcal"] == scales["plain"]


def lbfgs(task: Task) -> Task:
    return replace(task, optimizer=torch.optim.LBFGS(task.model.parameters(), lr=0.5, max_iter=5))


def test_an_optimizer_with_a_closure_trains_as_in_a_plain_loop() -> None:
    task, plain = (lbfgs(in_double(a_task())) for _ in range(2))
    for _ in range(3):
        (micro_batch,) = batches(40)
        result = run_group(task, [micro_batch], device=CPU, scaler=None, max_norm=1000.0)
        assert result.grad_norm is not None

        def closure(batch: object = micro_batch.batch) -> float:
            plain.optimizer.zero_grad()
            loss = cross_entropy(plain.model, batch)
            loss.backward()
            return loss.item()

        plain.optimizer.step(closure)
    assert torch.equal(parameters(task), parameters(plain))


def test_an_optimizer_with_a_closure_requires_one_micro_batch() -> None:
    with pytest.raises(UsageError, match="LBFGS computes the loss again") as caught:
        run_group(lbfgs(in_double(a_task())), batches(5, 5), device=CPU, scaler=None)
    assert "--effective-batch" in caught.value.try_
    task = replace(lbfgs(in_double(a_task())), autocast=torch.float16)
    with pytest.raises(UsageError, match="does not work with float16"):
        run_group(task, batches(5), device=CPU, scaler=torch.amp.GradScaler("cpu"))


@pytest.mark.gpu
def test_half_precision_with_a_scaler_trains_on_an_accelerator() -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    task = replace(a_task(), autocast=torch.float16)
    prepare(task, device)
    scaler = make_scaler(task, device)
    inputs, labels = torch.randn(64, 8), torch.randint(0, 3, (64,))
    losses = [
        run_group(
            task,
            iter([MicroBatch([inputs[:40], labels[:40]], 40), MicroBatch([inputs[40:], labels[40:]], 24)]),
            device=device,
            scaler=scaler,
        ).loss
        for _ in range(60)
    ]
    assert losses[-1] < losses[0] * 0.8


def sharpness_step(optimizer: torch.optim.Optimizer, closure: Callable[[], float]) -> None:
    """One step of sharpness-aware minimisation: up, then back and down with the gradient from there."""
    moved: list[Tensor] = optimizer.param_groups[0]["params"]
    before = [parameter.detach().clone() for parameter in moved]
    closure()
    with torch.no_grad():
        for parameter in moved:
            assert parameter.grad is not None
            parameter.add_(parameter.grad, alpha=0.1)
    optimizer.zero_grad()
    closure()
    with torch.no_grad():
        for parameter, was in zip(moved, before, strict=True):
            assert parameter.grad is not None, "the closure has computed no gradient"
            parameter.copy_(was - 0.1 * parameter.grad)


def test_a_closure_computes_a_new_gradient_after_the_parameters_moved() -> None:
    task = in_double(a_task())
    passes = Passes(replace(task, optimizer=torch.optim.LBFGS(task.model.parameters())), CPU, None)
    passes.run(next(batches(8)))
    passes.finish()
    assert passes.again is not None
    before = parameters(task).clone()
    sharpness_step(task.optimizer, passes.again)
    assert not torch.equal(before, parameters(task))
