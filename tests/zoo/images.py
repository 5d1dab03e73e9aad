"""Models of images and volumes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.workload.task import Task
from tests.zoo.samples import CLASSES, Pair, Pictures


def cross_entropy(model: nn.Module, batch: Pair) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def convolutional(samples: int = 4096, width: int = 32) -> Task:
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, CLASSES),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Task(model=model, optimizer=optimizer, train_data=Pictures(samples, 3, 32, 32), loss=cross_entropy)


class UNet(nn.Module):
    """Two levels down, two levels up, with the usual connections across."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.deepest = (
            self.block(1, width),
            self.block(width, 2 * width),
            self.block(2 * width, 4 * width),
        )
        self.up_second, self.up_first = self.block(6 * width, 2 * width), self.block(3 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        second = self.second(functional.max_pool2d(first, 2))
        deepest = self.deepest(functional.max_pool2d(second, 2))
        second = self.up_second(torch.cat([functional.interpolate(deepest, scale_factor=2), second], 1))
        first = self.up_first(torch.cat([functional.interpolate(second, scale_factor=2), first], 1))
        logits: Tensor = self.head(first)
        return logits


def mask_loss(model: nn.Module, batch: Pair) -> Tensor:
    return functional.binary_cross_entropy_with_logits(model(batch[0]), (batch[0] > 0.5).to(batch[0].dtype))


def u_net(samples: int = 2048, width: int = 16) -> Task:
    model = UNet(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Task(model=model, optimizer=optimizer, train_data=Pictures(samples, 1, 48, 48), loss=mask_loss)


class Residual(nn.Module):
    """Two convolutions with BatchNorm, added to their input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.across = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.body(images) + self.across(images))


def residual(samples: int = 4096, width: int = 16) -> Task:
    model = nn.Sequential(
        Residual(3, width, 1),
        Residual(width, 2 * width, 2),
        Residual(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, CLASSES),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Task(model=model, optimizer=optimizer, train_data=Pictures(samples, 3, 32, 32), loss=cross_entropy)


class VisionTransformer(nn.Module):
    """Patches of 4 x 4 as tokens, their mean classified."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(0.02 * torch.randn(64, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.encoder(tokens).mean(1))
        return logits


def vision_transformer(samples: int = 4096, width: int = 64, layers: int = 3) -> Task:
    model = VisionTransformer(width, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Task(model=model, optimizer=optimizer, train_data=Pictures(samples, 3, 32, 32), loss=cross_entropy)


def volumes(samples: int = 1024, width: int = 8) -> Task:
    """A 3-D convolution."""
    model = nn.Sequential(
        nn.Conv3d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(2 * width, CLASSES),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Task(model=model, optimizer=optimizer, train_data=Pictures(samples, 1, 16, 32, 32), loss=cross_entropy)


def reconstruction(model: nn.Module, batch: Pair) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[0])


def autoencoder(samples: int = 4096, width: int = 16) -> Task:
    model = nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.GELU(),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.GELU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        nn.GELU(),
        nn.ConvTranspose2d(width, 3, 4, 2, 1),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Task(model=model, optimizer=optimizer, train_data=Pictures(samples, 3, 32, 32), loss=reconstruction)
