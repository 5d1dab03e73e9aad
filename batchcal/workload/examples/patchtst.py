"""PatchTST: forecasts many-channel time series from patches of their past (Nie et al. 2023, arXiv:2211.14730).

Training takes about 2.3 MB a sample with the defaults: a batch of some hundreds fills 1 GiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.core.errors import UsageError
from batchcal.workload.examples.series import Windows
from batchcal.workload.task import Task


class PatchTST(nn.Module):
    """Each channel is cut into patches that a transformer encoder sees as tokens; all channels share its weights.

    Every window is normalised by its own mean and deviation first, which are given back to the forecast (Kim et al. 2022, RevIN).
    """

    def __init__(
        self,
        *,
        channels: int,
        lookback: int,
        horizon: int,
        patch_length: int,
        stride: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self._patch_length, self._stride = patch_length, stride
        patches = (lookback - patch_length) // stride + 2  # the last value is repeated for one more, as in the paper
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.embed = nn.Linear(patch_length, d_model)
        self.position = nn.Parameter(0.02 * torch.randn(patches, d_model))
        layer = nn.TransformerEncoderLayer(
            d_model, n_heads, 2 * d_model, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, n_layers, norm=nn.LayerNorm(d_model), enable_nested_tensor=False)
        self.head = nn.Linear(patches * d_model, horizon)

    def forward(self, past: Tensor) -> Tensor:
        """(batch, lookback, channels) -> (batch, horizon, channels)."""
        batch, _, channels = past.shape
        mean = past.mean(1, keepdim=True).detach()
        deviation = (past.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt().detach()
        normal = (past - mean) / deviation * self.scale + self.shift
        padded = functional.pad(normal.transpose(1, 2), (0, self._stride), mode="replicate")
        patches = padded.unfold(-1, self._patch_length, self._stride)  # (batch, channels, patches, patch_length)
        tokens = self.embed(patches).flatten(0, 1) + self.position
        output: Tensor = self.head(self.encoder(tokens).flatten(1))
        forecast = output.view(batch, channels, -1).transpose(1, 2)
        restored: Tensor = (forecast - self.shift) / (self.scale + 1e-5) * deviation + mean
        return restored


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error over samples, horizon and channels."""
    past, future = batch
    return functional.mse_loss(model(past), future)


def metrics(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, tuple[float, float]]:
    """Squared and absolute error, and over how many values."""
    past, future = batch
    error = model(past) - future
    return {
        "mse": (float(error.square().sum()), float(error.numel())),
        "mae": (float(error.abs().sum()), float(error.numel())),
    }


def task(
    device: torch.device,
    *,
    data: str | None = None,
    steps: int = 10_000,
    lookback: int = 168,
    horizon: int = 24,
    patch_length: int = 16,
    stride: int = 8,
    d_model: int = 64,
    n_layers: int = 3,
    n_heads: int = 4,
    dropout: float = 0.0,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> Task:
    """Args:
    data: a CSV file with a header and a row a step; default: a generated series of `steps` hours in 7 channels.
    lookback, horizon: number of input steps, and of steps to forecast.
    patch_length, stride: of the patches into which the input is divided.
    dropout: with 0, gradients do not depend on how a batch is divided.
    """
    if not 1 <= patch_length <= lookback or stride < 1 or horizon < 1:
        raise UsageError(
            f"patch_length = {patch_length}, stride = {stride}, lookback = {lookback} and horizon = {horizon} "
            "are not possible together",
            known="each must be at least 1, and patch_length at most lookback",
            try_="patch_length = 16, stride = 8, lookback = 168, horizon = 24",
        )
    if n_heads < 1 or d_model % n_heads:
        raise UsageError(
            f"d_model = {d_model} is not a multiple of n_heads = {n_heads}", try_=f"d_model = {16 * max(n_heads, 1)}"
        )
    path = None if data is None else Path(data).absolute()
    train_data, eval_data = (
        Windows(path, steps, lookback=lookback, horizon=horizon, part=part, seed=seed) for part in ("train", "eval")
    )
    model = PatchTST(
        channels=train_data.channels,
        lookback=lookback,
        horizon=horizon,
        patch_length=patch_length,
        stride=stride,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        dropout=dropout,
    ).to(device)
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay),
        train_data=train_data,
        eval_data=eval_data,
        loss=loss,
        metrics=metrics,
        size_of=[1.0] * len(train_data),  # all windows have the same size, so no sample must be read
    )
