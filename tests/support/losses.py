"""Tasks with the losses that people use. For each: whether a batch may be divided without changing its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from batchcal.workload.task import Task

Verdict = Literal["exact", "refused", "marked"]
"""`exact`: parts add up to the whole; `refused`: they do not; `marked`: they do but for batch statistics."""
SAMPLES: Final = 96
CLASSES: Final = 5
FEATURES: Final = 12
LONGEST: Final = 9


@dataclass(frozen=True)
class Loss:
    make: Callable[[], Task]
    verdict: Verdict
    cause: str = ""
    """A part of the cause that a check names."""


class Points(Dataset[object]):
    """Features, a class (the first is the most frequent) and, where asked for, an item without any label now and then."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(FEATURES, generator=generator), 0 if index % 3 else index % CLASSES


class Texts(Dataset[object]):
    """Token ids of many lengths, and how many of them are labelled (none, in one of four)."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        length = 2 + (index * 7) % (LONGEST - 1)
        tokens = torch.randint(1, 20, (length,), generator=torch.Generator().manual_seed(index))
        mask = torch.arange(length) % 2 == 0 if index % 4 else torch.zeros(length, dtype=torch.bool)
        return tokens, mask


def padded(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    tokens, masks = (nn.utils.rnn.pad_sequence(list(each), batch_first=True) for each in zip(*samples, strict=True))
    return {"tokens": tokens, "mask": masks.bool(), "present": tokens != 0}


def a_net(outputs: int = CLASSES, *, norm: bool = False) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, outputs)
    )


def of_points(loss: Callable[[nn.Module, Tensor, Tensor], Tensor], model: nn.Module | None = None, *extra: nn.Parameter) -> Task:
    net = model or a_net()

    def of_batch(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss(net, *batch)

    optimizer = torch.optim.SGD([*net.parameters(), *extra], 0.05)
    return Task(model=net, optimizer=optimizer, train_data=Points(), loss=of_batch)


def of_texts(loss: Callable[[Tensor, dict[str, Tensor]], Tensor], weight_of: Callable[..., float] | None = None) -> Task:
    torch.manual_seed(7)
    net = nn.Sequential(nn.Embedding(20, 8), nn.Tanh(), nn.Linear(8, 20))

    def of_batch(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        by_token = functional.cross_entropy(net(batch["tokens"]).transpose(1, 2), batch["tokens"], reduction="none")
        return loss(by_token, batch)

    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    return Task(model=net, optimizer=optimizer, train_data=Texts(), loss=of_batch, collate_fn=padded, weight_of=weight_of)


def token_mean(by_token: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return by_token[batch["present"]].mean()


def masked_mean(by_token: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return by_token[batch["mask"]].mean()  # NaN of a batch in which nothing is labelled


def tokens_of(batch: dict[str, Tensor]) -> float:
    return float(batch["present"].sum())


def labelled_in(batch: dict[str, Tensor]) -> float:
    return float(batch["mask"].sum())


def class_weights(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    weights = torch.tensor([0.2, 1.0, 2.0, 3.0, 4.0]).to(inputs)
    return functional.cross_entropy(net(inputs), labels, weight=weights)


def contrastive(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    one, other = (functional.normalize(net(each), dim=1) for each in (inputs, inputs * 1.1 + 0.01))
    return functional.cross_entropy(one @ other.T / 0.1, torch.arange(len(inputs)))


def triplets(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """The hardest positive and negative in the batch."""
    outputs = net(inputs)
    apart = torch.cdist(outputs, outputs)
    same = labels[:, None] == labels[None, :]
    hardest_positive = apart.masked_fill(~same, 0.0).amax(1)
    hardest_negative = apart.masked_fill(same, 1e3).amin(1)
    return functional.relu(hardest_positive - hardest_negative.clamp(max=5.0) + 1.0).mean()


def ctc(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    steps = net(inputs.unsqueeze(1) + torch.linspace(-1, 1, 6)[None, :, None]).log_softmax(2).transpose(0, 1)
    targets = torch.stack([labels.clamp(max=3) + 1, torch.ones_like(labels)], 1)
    lengths = torch.full((len(inputs),), 6), torch.where(labels > 0, 2, 1)
    return functional.ctc_loss(steps, targets, *lengths)


def focal(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    by_sample = functional.cross_entropy(net(inputs), labels, reduction="none")
    return (by_sample * (1 - (-by_sample).exp()).square()).mean()


def distillation(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    teacher = (inputs[:, :CLASSES] * 2).log_softmax(1)
    soft = functional.kl_div(net(inputs).log_softmax(1), teacher, log_target=True, reduction="batchmean")
    return 0.5 * soft + 0.5 * functional.cross_entropy(net(inputs), labels)


def kl_batch_mean(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return functional.kl_div(net(inputs).log_softmax(1), functional.one_hot(labels, CLASSES).float(), reduction="batchmean")


def load_balanced(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """A mixture of experts, whose auxiliary loss is a product of two means over the batch."""
    outputs = net(inputs)
    routed = outputs.softmax(1)
    share = functional.one_hot(routed.argmax(1), CLASSES).float().mean(0)
    balance: Tensor = (share * routed.mean(0)).sum()
    return functional.cross_entropy(outputs, labels) + 0.5 * CLASSES * balance


def learned_temperature() -> Task:
    temperature = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def loss(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(net(inputs) * temperature.exp(), labels)

    return of_points(loss, None, temperature)


def mean(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(net(inputs), labels)


def summed(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(net(inputs), labels, reduction="sum")


def smoothed(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(net(inputs), labels, label_smoothing=0.1)


LOSSES: Final[dict[str, Loss]] = {
    "mean": Loss(lambda: of_points(mean), "exact"),
    "sum": Loss(lambda: of_points(summed), "refused", "a sum over the samples"),
    "token mean": Loss(lambda: of_texts(token_mean), "refused", "a mean over something other than samples"),
    "token mean, weighed": Loss(lambda: of_texts(token_mean, tokens_of), "exact"),
    "class weights": Loss(lambda: of_points(class_weights), "refused", "class weights"),
    "contrastive": Loss(lambda: of_points(contrastive), "refused", "the other samples"),
    "triplet mining": Loss(lambda: of_points(triplets), "refused", "the other samples"),
    "ctc": Loss(lambda: of_points(ctc), "exact"),
    "label smoothing": Loss(lambda: of_points(smoothed), "exact"),
    "focal": Loss(lambda: of_points(focal), "exact"),
    "masked": Loss(lambda: of_texts(masked_mean), "refused", "NaN"),
    "masked, weighed": Loss(lambda: of_texts(masked_mean, labelled_in), "exact"),
    "distillation": Loss(lambda: of_points(distillation), "exact"),
    "kl batch mean": Loss(lambda: of_points(kl_batch_mean), "exact"),
    "batch norm": Loss(lambda: of_points(mean, a_net(norm=True)), "marked"),
    "auxiliary loss": Loss(lambda: of_points(load_balanced), "refused", "the other samples"),
    "learned temperature": Loss(learned_temperature, "exact"),
}
