"""Several images a sample: studies of 1 to 3 volumes of different sizes, and three tasks that share an encoder.

A study of the largest sizes takes about 2.4 MB in training with the defaults, the average a third of that.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.core.errors import UsageError
from batchcal.workload.collator import HeterogeneousBatch, HeterogeneousCollator, HeterogeneousSample
from batchcal.workload.examples.volumes import KINDS, SHAPES, SLOTS, Kind, Studies, halved
from batchcal.workload.task import Task


class MultiImage(nn.Module):
    """One encoder for every volume, one head for every kind of task.

    Padding is masked after each layer and nothing is normalised over the batch: a study's answer does not depend on the others.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = 4 * width
        self.layers = nn.ModuleList(
            [
                nn.Conv3d(1, width, 3, stride=2, padding=1),
                nn.Conv3d(width, 2 * width, 3, padding=1),
                nn.Conv3d(2 * width, 2 * width, 3, padding=1),
                nn.Conv3d(2 * width, 4 * width, 3, stride=2, padding=1),
                nn.Conv3d(4 * width, 4 * width, 3, padding=1),
            ]
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv3d):  # without normalisation, torch's default weights would shrink the activations
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.heads = nn.ModuleDict(
            {
                "T1": self._head(self.features, SHAPES),
                "T2": self._head(2 * self.features, 1),
                "T3": self._head(SLOTS * self.features, SLOTS),
            }
        )

    @staticmethod
    def _head(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, outputs))

    def forward(self, batch: HeterogeneousBatch) -> dict[Kind, Tensor]:
        """Answers (studies of the kind, 3), or (studies of the kind) for T2, of each kind that is in the batch."""
        places = batch.places()
        features = batch.pixel_values.flatten(0, 1)[places]
        mask = batch.pixel_mask().flatten(0, 1)[places].unsqueeze(1).to(features.dtype)
        for layer in self.layers:
            features = layer(features)
            if features.shape[2:] != mask.shape[2:]:
                mask = halved(mask)
            features = functional.relu(features) * mask
        pooled = features.sum((2, 3, 4)) / mask.sum((2, 3, 4))
        studies, width = batch.image_mask.shape
        slots = pooled.new_zeros(studies * width, self.features).index_put((places,), pooled).view(studies, width, -1)
        answers: dict[Kind, Tensor] = {}
        for used, kind in enumerate(KINDS, 1):
            if kind in batch.labels:
                answer: Tensor = self.heads[kind](slots[batch.labels[kind].rows, :used].flatten(1))
                answers[kind] = answer.squeeze(1) if kind == "T2" else answer
        return answers


def losses(model: nn.Module, batch: HeterogeneousBatch) -> Mapping[str, Tensor]:
    """Contribution of each kind of task to the mean over all studies of the batch."""
    answers: dict[Kind, Tensor] = model(batch)
    shares: dict[str, Tensor] = {}
    for kind, answer in answers.items():
        lost = functional.mse_loss if kind == "T2" else functional.cross_entropy
        targets = batch.labels[kind].values
        # A value may have another precision than the model; a class is an integer.
        targets = targets.to(answer.dtype) if targets.is_floating_point() else targets
        shares[kind] = lost(answer, targets, reduction="sum") / len(batch)
    return shares


def loss(model: nn.Module, batch: HeterogeneousBatch) -> Tensor:
    """Mean over the studies, each with the loss of its own kind."""
    return torch.stack(list(losses(model, batch).values())).sum()


def metrics(model: nn.Module, batch: HeterogeneousBatch) -> Mapping[str, tuple[float, float]]:
    """Correct studies (T1, T3), squared error (T2), and the number of studies of each."""
    answers: dict[Kind, Tensor] = model(batch)
    result: dict[str, tuple[float, float]] = {}
    for kind, answer in answers.items():
        targets = batch.labels[kind].values
        if kind == "T2":
            result["T2_mse"] = (float((answer - targets).square().sum()), float(len(targets)))
        else:
            result[f"{kind}_accuracy"] = (float((answer.argmax(1) == targets).sum()), float(len(targets)))
    return result


def kind_of(study: HeterogeneousSample) -> str:
    """Its task."""
    return study.task_type


def task(device: torch.device, *, samples: int = 6_000, width: int = 8, learning_rate: float = 2e-3, seed: int = 0) -> Task:
    """Args:
    samples: studies to train with, a third of each kind; a tenth as many more to evaluate with.
    width: channels of the first layer. Memory grows in proportion.
    """
    if samples < 1 or width < 1:
        raise UsageError(f"samples = {samples}, width = {width}: each must be at least 1", try_="samples = 6000, width = 8")
    model = MultiImage(width).to(device)
    train_data = Studies(samples, seed=2 * seed)
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=learning_rate),
        train_data=train_data,
        eval_data=Studies(max(1, samples // 10), seed=2 * seed + 1),
        collate_fn=HeterogeneousCollator(),
        loss=loss,
        losses=losses,
        metrics=metrics,
        size_of=train_data.voxels(),
        group_of=kind_of,
        label_of=kind_of,
    )
