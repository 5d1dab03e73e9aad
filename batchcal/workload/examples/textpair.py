"""Text pairs: do two token sequences have the same topic? A transformer encoder over sequences of long-tailed lengths.

The pairs are generated: no text is needed to show the effect of lengths on memory. A batch is padded to its longest sequence;
with the defaults, training takes about 2.6 MB per sample of the longest pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from batchcal.core.errors import UsageError
from batchcal.workload.task import Task

PADDING: Final = 0
TOPICS: Final = 8
_SHORTEST: Final = 4
_ABOUT_TOPIC: Final = 0.5
"""Share of the tokens that are words of the topic; the others are random words."""


class Pair(NamedTuple):
    """Two texts as token ids, and whether they share their topic."""

    first: Tensor
    second: Tensor
    same: int


class Pairs(Dataset[Pair]):
    """Pairs that depend only on seed and index. Lengths are lognormal, like those of texts (Sobkowicz et al. 2013).

    `lengths` has the longer of the two for each index.
    """

    def __init__(self, samples: int, *, vocabulary: int, median_length: int, longest: int, seed: int) -> None:
        self._seed, self._vocabulary = seed, vocabulary
        generator = torch.Generator().manual_seed(seed)
        # In double precision: a last bit, in which torch.exp differs from process to process, must not decide a length.
        lengths = median_length * torch.exp(0.6 * torch.randn(samples, 2, generator=generator).double())
        self._lengths = lengths.round().clamp(_SHORTEST, longest).to(torch.int16)

    @property
    def lengths(self) -> list[float]:
        return self._lengths.amax(1).double().tolist()

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Pair:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index + 1)
        topic, other, same = torch.randint(0, 1 << 30, (3,), generator=generator).tolist()
        first = topic % TOPICS
        second = first if same % 2 else (first + 1 + other % (TOPICS - 1)) % TOPICS
        lengths = self._lengths[index].tolist()
        return Pair(self._text(first, lengths[0], generator), self._text(second, lengths[1], generator), same % 2)

    def _text(self, topic: int, length: int, generator: torch.Generator) -> Tensor:
        words = torch.randint(1, self._vocabulary, (length,), generator=generator)
        of_topic = (words // TOPICS * TOPICS + topic).clamp(1, self._vocabulary - 1)
        return torch.where(torch.rand(length, generator=generator) < _ABOUT_TOPIC, of_topic, words)


def collate(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """`tokens` (2 x batch, longest), the first texts and then the second, padded with 0; `same` (batch)."""
    texts = [pair.first for pair in pairs] + [pair.second for pair in pairs]
    return {
        "tokens": pad_sequence(texts, batch_first=True, padding_value=PADDING),
        "same": torch.tensor([float(pair.same) for pair in pairs]),
    }


class PairClassifier(nn.Module):
    """One encoder for both texts; their means, difference and product decide (Reimers and Gurevych 2019, arXiv:1908.10084)."""

    def __init__(self, *, vocabulary: int, longest: int, d_model: int, n_layers: int, n_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, d_model, padding_idx=PADDING)
        self.position = nn.Parameter(0.02 * torch.randn(longest, d_model))
        layer = nn.TransformerEncoderLayer(d_model, n_heads, 2 * d_model, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, n_layers, norm=nn.LayerNorm(d_model), enable_nested_tensor=False)
        self.decide = nn.Sequential(nn.Linear(4 * d_model, d_model), nn.GELU(), nn.Linear(d_model, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """(2 x batch, length) -> logits (batch)."""
        real = tokens != PADDING
        hidden: Tensor = self.encoder(self.words(tokens) + self.position[: tokens.shape[1]], src_key_padding_mask=~real)
        weights = real.unsqueeze(-1).to(hidden.dtype)
        first, second = ((hidden * weights).sum(1) / weights.sum(1)).chunk(2)
        logits: Tensor = self.decide(torch.cat([first, second, (first - second).abs(), first * second], dim=1))
        return logits.squeeze(1)


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the pairs."""
    return functional.binary_cross_entropy_with_logits(model(batch["tokens"]), batch["same"])


def metrics(model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, tuple[float, float]]:
    """Share of correct pairs, and F1 = 2 TP / (2 TP + FP + FN), which as a sum and a weight adds up over batches."""
    predicted, same = model(batch["tokens"]) > 0, batch["same"] > 0.5
    right, both = float((predicted == same).sum()), 2 * float((predicted & same).sum())
    wrong = float((predicted != same).sum())
    return {"accuracy": (right, right + wrong), "f1": (both, both + wrong)}


def task(
    device: torch.device,
    *,
    samples: int = 20_000,
    vocabulary: int = 512,
    median_length: int = 24,
    longest: int = 128,
    d_model: int = 64,
    n_layers: int = 2,
    n_heads: int = 4,
    dropout: float = 0.0,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> Task:
    """Args:
    samples: pairs to train with; a tenth as many more to evaluate with.
    median_length, longest: of the texts, in tokens; half are shorter than the median, one in 400 is at its longest.
    """
    if n_heads < 1 or d_model % n_heads:
        raise UsageError(
            f"d_model = {d_model} is not a multiple of n_heads = {n_heads}", try_=f"d_model = {16 * max(n_heads, 1)}"
        )
    if samples < 1 or vocabulary <= 2 * TOPICS or not _SHORTEST <= median_length <= longest <= 1 << 14:
        raise UsageError(
            f"samples = {samples}, vocabulary = {vocabulary}, median_length = {median_length} and longest = {longest} "
            "are not possible together",
            known=f"required: samples > 0, vocabulary > {2 * TOPICS}, {_SHORTEST} <= median_length <= longest <= {1 << 14}",
            try_="samples = 20000, vocabulary = 512, median_length = 24, longest = 128",
        )
    train_data, eval_data = (
        Pairs(count, vocabulary=vocabulary, median_length=median_length, longest=longest, seed=2 * seed + part)
        for part, count in enumerate((samples, max(1, samples // 10)))
    )
    model = PairClassifier(
        vocabulary=vocabulary, longest=longest, d_model=d_model, n_layers=n_layers, n_heads=n_heads, dropout=dropout
    ).to(device)
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay),
        train_data=train_data,
        eval_data=eval_data,
        collate_fn=collate,
        loss=loss,
        metrics=metrics,
        size_of=train_data.lengths,
        label_of=lambda pair: pair.same,
    )
