"""The check that a loss is a mean over its weight: right for the losses that people use."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.measure.inside.mean_over_weight import check_mean, divisions_for
from batchcal.measure.inside.promises import batch_statistics, single_sample_error
from batchcal.measure.inside.samples import Samples
from batchcal.measure.inside.subject import Subject
from batchcal.workload.task import Task
from tests.support.losses import LOSSES, Texts, a_net, mean, of_points, of_texts, padded, token_mean

CPU = torch.device("cpu")


def checked(task: Task, *, unit: int = 1) -> PromiseCheck:
    return check_mean(task, Samples(task, seed=0), CPU, unit=unit, limit_s=60.0)


@pytest.mark.parametrize("name", LOSSES)
def test_the_check_gives_the_expected_result_for_each_loss(name: str) -> None:
    loss = LOSSES[name]
    task = loss.make()
    check, statistics = checked(task), batch_statistics(task.model)
    assert check.result == ("violated" if loss.verdict == "refused" else "ok"), check
    assert loss.cause in check.cause
    assert (statistics.result == "violated") is (loss.verdict == "marked")
    if loss.verdict == "refused":
        assert check.mismatch is not None and check.mismatch > 0.01
        assert check.fix


def test_the_mismatch_is_computed_from_the_gradients() -> None:
    """A sum over 3 + 5 or 1 + 7 samples, weighed by samples: (3*3 + 5*5)/8 = 4.25 and (1 + 49)/8 = 6.25 of 8."""
    check = checked(LOSSES["sum"].make())
    assert check.mismatch == pytest.approx(1 - 4.25 / 8, abs=0.1)


def test_the_checked_batch_contains_rare_long_texts() -> None:
    class RarelyLong(Texts):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            length = 60 if index % 10 == 9 else 3
            tokens = torch.randint(1, 20, (length,), generator=torch.Generator().manual_seed(index))
            return tokens, torch.ones(length, dtype=torch.bool)

    check = checked(replace(of_texts(token_mean), train_data=RarelyLong()))
    assert check.result == "violated"


def test_a_length_difference_of_one_percent_is_detected() -> None:
    class NearlyAlike(Texts):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            length = 100 + index % 2
            tokens = torch.randint(1, 20, (length,), generator=torch.Generator().manual_seed(index))
            return tokens, torch.ones(length, dtype=torch.bool)

    assert checked(replace(of_texts(token_mean), train_data=NearlyAlike())).result == "violated"


def test_a_task_that_accepts_only_even_batches_is_checked_with_even_parts() -> None:
    def even(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        if len(inputs) % 2:
            raise ValueError("an even batch is needed")
        return functional.cross_entropy(net(inputs), labels)

    assert checked(of_points(even)).result == "ok"


def test_sizes_are_multiples_of_the_unit() -> None:
    assert list(divisions_for(100, 8)) == [((24, 40), (8, 56)), ((16, 48), (32, 32)), ((8, 24), (16, 16)), ((8, 8),)]
    assert list(divisions_for(5, 1)) == [((1, 3), (2, 2)), ((1, 1),)]


def test_a_fixed_size_task_is_not_checked_and_the_cause_is_reported() -> None:
    def fixed(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        if len(inputs) != 32:
            raise ValueError("32 samples are needed")
        return functional.cross_entropy(net(inputs), labels)

    check = checked(of_points(fixed))
    assert check.result == "not-checked"
    assert "32 samples are needed" in check.cause


def test_training_noise_outside_dropout_layers_is_not_a_mismatch() -> None:
    def noisy(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        noise = torch.randn_like(inputs) if net.training else torch.zeros_like(inputs)
        return functional.cross_entropy(net(inputs + noise), labels)

    assert checked(of_points(noisy)).result == "ok"


def noise_of_torch(inputs: Tensor) -> Tensor:
    return inputs + 0.3 * torch.randn_like(inputs)


def noise_of_python(inputs: Tensor) -> Tensor:
    return inputs * torch.tensor([random.random() + 0.5 for _ in inputs])[:, None]


def noise_of_numpy(inputs: Tensor) -> Tensor:
    return inputs * torch.from_numpy(numpy.random.rand(len(inputs), 1).astype("float32") + 0.5)


def noise_of_its_own(inputs: Tensor) -> Tensor:
    return inputs + 0.3 * torch.randn(
        inputs.shape, generator=torch.Generator().manual_seed(random.SystemRandom().randrange(2**31))
    )


def noise_of_time(inputs: Tensor) -> Tensor:
    """Of a sequence of numbers that the whole batch and its parts share."""
    return inputs + 0.3 * torch.randn(inputs.shape[1], inputs.shape[0]).T


def a_shuffle(inputs: Tensor) -> Tensor:
    return 0.7 * inputs + 0.3 * inputs[torch.randperm(len(inputs))]


@pytest.mark.parametrize(
    "noise", [noise_of_python, noise_of_numpy, noise_of_its_own, noise_of_time, a_shuffle], ids=lambda noise: noise.__name__
)
def test_a_loss_with_uncontrolled_random_noise_is_not_checked(noise: Callable[[Tensor], Tensor]) -> None:
    check = checked(of_points(lambda net, inputs, labels: functional.cross_entropy(net(noise(inputs)), labels)))
    assert check.result == "not-checked"
    assert "random numbers" in check.cause


def per_feature(inputs: Tensor) -> Tensor:
    return inputs * (1 + 0.3 * torch.randn(inputs.shape[1]))


def by_distribution(inputs: Tensor) -> Tensor:
    return torch.distributions.Normal(inputs, 0.3).rsample()


@pytest.mark.parametrize("noise", [noise_of_torch, per_feature, by_distribution], ids=lambda noise: noise.__name__)
def test_noise_per_sample_is_equal_for_a_batch_and_its_parts(noise: Callable[[Tensor], Tensor]) -> None:
    check = checked(of_points(lambda net, inputs, labels: functional.cross_entropy(net(noise(inputs)), labels)))
    assert check.result == "ok"
    assert check.mismatch is not None and check.mismatch < 1e-5


def autoencoder(reduction: str) -> Task:
    """A variational autoencoder. `sum`: both terms; `mixed`: the mean of one and the sum of the other."""
    torch.manual_seed(7)
    net = nn.ModuleDict({"mean": nn.Linear(12, 3), "deviation": nn.Linear(12, 3), "decoder": nn.Linear(3, 12)})

    def loss(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        mean, deviation = net.get_submodule("mean")(inputs), net.get_submodule("deviation")(inputs)
        outputs = net.get_submodule("decoder")(mean + deviation.exp() * torch.randn_like(deviation))
        apart = -0.5 * torch.sum(1 + 2 * deviation - mean.square() - (2 * deviation).exp())
        error = functional.mse_loss(outputs, inputs, reduction="mean" if reduction == "mixed" else "sum")
        return (error + apart) / (len(inputs) if reduction == "mean" else 1)

    return of_points(loss, net)


@pytest.mark.parametrize(
    ("reduction", "result", "cause"),
    [("mean", "ok", ""), ("sum", "violated", "a sum over the samples"), ("mixed", "violated", "the other samples")],
)
def test_a_wrong_reduction_is_detected_despite_noise(reduction: str, result: str, cause: str) -> None:
    check = checked(autoencoder(reduction))
    assert check.result == result
    assert cause in check.cause


def test_a_nan_loss_is_not_reported_as_random() -> None:
    def broken(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return mean(net, inputs, labels) * torch.log(torch.tensor(-1.0))

    check = checked(of_points(broken))
    assert (check.result, check.cause) == ("not-checked", "the gradient of a batch of 8 is NaN or infinite")


def test_a_correlation_loss_is_reported_as_coupled_samples() -> None:
    def correlation(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return 1 - torch.corrcoef(torch.stack([net(inputs)[:, 0], inputs[:, 0]]))[0, 1]

    check = checked(of_points(correlation))
    assert check.result == "violated"
    assert "other samples" in check.cause


def test_an_optimizer_step_in_a_backward_hook_is_named() -> None:
    """A step as soon as a gradient is complete, for the first layer only."""
    task = of_points(mean)
    first = next(task.model.parameters())
    own = torch.optim.Adagrad([first], 0.1)

    def step(parameter: Tensor) -> None:
        own.step()
        own.zero_grad()

    first.register_post_accumulate_grad_hook(step)
    check = checked(task)
    assert check.result == "violated"
    assert "Adagrad makes a step" in check.cause


def test_a_collate_function_with_random_masks_is_not_a_mismatch() -> None:
    def masked(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        batch = padded(samples)
        return {**batch, "present": batch["present"] & (torch.rand(batch["tokens"].shape) < 0.5)}

    task = replace(of_texts(token_mean, lambda batch: float(batch["present"].sum())), collate_fn=masked)
    assert checked(task).result == "not-checked"


def test_a_loss_that_couples_samples_is_detected_despite_noise() -> None:
    def noisy(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return LOSSES["contrastive"].make().loss(net, (inputs + 0.05 * torch.randn_like(inputs), labels))

    check = checked(of_points(noisy))
    assert check.result == "violated"
    assert "other samples" in check.cause
    assert check.mismatch is not None and check.mismatch > 0.2


def test_autocast_inside_the_loss_has_a_larger_tolerance() -> None:
    def loss(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = net(inputs)
        return functional.cross_entropy(outputs.float(), labels)

    assert checked(of_points(loss)).result == "ok"


def test_batchnorm_without_running_statistics_violates_only_batch_statistics() -> None:
    net = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.Tanh(), nn.Linear(16, 5))
    task = of_points(mean, net)
    assert checked(task).result == "ok"
    assert batch_statistics(net).result == "violated"


class Queue(nn.Module):
    """Features of earlier batches, to contrast with."""

    def __init__(self, *, buffer: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net, self.queue = nn.Linear(12, 8), torch.zeros(0)
        if buffer:
            del self.queue
            self.register_buffer("queue", torch.zeros(0))
        self.queue = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))

    def forward(self, inputs: Tensor) -> Tensor:
        own = functional.normalize(self.net(inputs), dim=1)
        scores = torch.cat([own.square().sum(1, keepdim=True), own @ self.queue.T], 1) / 0.2
        self.queue = torch.cat([self.queue, own.detach()])[-3:]
        return functional.cross_entropy(scores, torch.zeros(len(inputs), dtype=torch.long))


@pytest.mark.parametrize("buffer", [False, True])
def test_a_queue_that_every_batch_updates_is_named(buffer: bool) -> None:
    check = checked(of_points(lambda net, inputs, labels: net(inputs), Queue(buffer=buffer)))
    assert check.result == "violated"
    assert "a queue" in check.cause


def test_running_averages_in_a_loss_object_are_named() -> None:
    class Scaled:
        """Divides by the mean of the losses before."""

        def __init__(self) -> None:
            self.losses = [10.0]

        def __call__(self, net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss = functional.cross_entropy(net(batch[0]), batch[1]) / (sum(self.losses) / len(self.losses))
            self.losses.append(float(loss.detach()))
            return loss

    check = checked(replace(of_points(mean), loss=Scaled()))
    assert check.result == "violated"
    assert "running averages" in check.cause


def test_a_target_network_updated_in_forward_is_restored() -> None:
    """A tenth of the way at each forward pass: far more than the tolerance between two evaluations."""

    class Following(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.target = a_net(), a_net()
            self.target.requires_grad_(False)
            with torch.no_grad():
                for parameter in self.target.parameters():
                    parameter.add_(0.01)

        def forward(self, inputs: Tensor) -> Tensor:
            for own, followed in zip(self.target.parameters(), self.net.parameters(), strict=True):
                own.data.lerp_(followed.data, 0.1)
            return functional.mse_loss(self.net(inputs), self.target(inputs) + 1.0)

    assert checked(of_points(lambda net, inputs, labels: net(inputs), Following())).result == "ok"


@pytest.mark.parametrize("normalized", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm], ids=["new", "old"])
def test_spectral_norm_passes_the_mean_over_weight_check(normalized: Callable[[nn.Module], nn.Module]) -> None:
    """The old one begins with a random estimate, which the first passes improve much."""
    net = nn.Sequential(normalized(nn.Linear(12, 16)), nn.Tanh(), nn.Linear(16, 5))
    assert checked(of_points(mean, net)).result == "ok"


def test_coupling_only_in_training_mode_is_detected() -> None:
    def centred(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        outputs = net(inputs)
        return functional.cross_entropy(outputs - outputs.mean(0) if net.training else outputs, labels)

    assert checked(of_points(centred)).result == "violated"


def test_a_bfloat16_layer_has_a_larger_tolerance() -> None:
    net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5)).to(torch.bfloat16)

    def loss(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(net(inputs.to(torch.bfloat16)).float(), labels)

    assert checked(of_points(loss, net)).result == "ok"


def test_a_dataset_with_getitems_is_read_like_the_dataloader_reads_it() -> None:
    class Columns(TensorDataset):
        def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
            return tuple(tensor[indices] for tensor in self.tensors)

    data = Columns(torch.randn(96, 12), torch.randint(0, 5, (96,)))
    task = replace(of_points(mean), train_data=data, collate_fn=lambda batch: batch)
    assert checked(task).result == "ok"


def test_samples_dropped_by_collate_do_not_stop_the_check() -> None:
    class Holes(Dataset[object]):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | None:
            return None if index % 5 == 0 else Texts()[index]

        def __len__(self) -> int:
            return len(Texts())

    def without_holes(samples: list[tuple[Tensor, Tensor] | None]) -> dict[str, Tensor]:
        return padded([sample for sample in samples if sample is not None])

    task = replace(of_texts(token_mean, lambda batch: float(batch["present"].sum())), train_data=Holes())
    assert checked(replace(task, collate_fn=without_holes)).result == "ok"


@dataclass
class Kept:
    """A batch without the samples that could not be read, and how many there were."""

    inputs: Tensor
    labels: Tensor
    before: int


def test_rows_dropped_by_collate_are_detected_in_a_dataclass_batch() -> None:
    """Before, the rows of a dataclass were unknown, and the cause was `weight_of` alone."""

    def kept(samples: list[tuple[Tensor, int]]) -> Kept:
        good = [sample for sample in samples if float(sample[0][0]) > 0] or samples[:1]
        return Kept(torch.stack([one for one, _ in good]), torch.tensor([label for _, label in good]), len(samples))

    def loss(net: nn.Module, batch: Kept) -> Tensor:
        return functional.cross_entropy(net(batch.inputs), batch.labels)

    task = replace(of_points(mean), loss=loss, collate_fn=kept, weight_of=lambda batch: float(batch.before))
    check = checked(task)
    assert check.result == "violated"
    assert "fewer rows than samples" in check.cause


def test_a_constant_loss_for_unlabeled_parts_violates_mean_over_weight() -> None:
    """Not a sum, although the labelled part alone makes the gradient of the whole."""

    def rare(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        labelled = inputs[:, 0] > 1
        return functional.cross_entropy(net(inputs)[labelled], labels[labelled]) if labelled.any() else torch.zeros(())

    check = checked(of_points(rare))
    assert check.result == "violated"
    assert "nothing in it is labelled" in check.cause
    assert "weight_of" in check.fix


@pytest.mark.parametrize(("norm", "fails"), [(True, True), (False, False)])
def test_an_error_with_a_single_sample_is_detected(norm: bool, fails: bool) -> None:
    task = of_points(mean, a_net(norm=norm))
    error = single_sample_error(Subject.of(task, CPU), Samples(task, seed=0))
    assert ("more than 1 value" in error) is fails


def test_the_mean_over_weight_check_needs_two_samples() -> None:
    def of(samples: int) -> PromiseCheck:
        data = TensorDataset(torch.randn(samples, 12), torch.randint(0, 5, (samples,)))
        return checked(replace(of_points(mean), train_data=data))

    assert of(2).result == "ok"
    assert of(1).result == "not-checked"
