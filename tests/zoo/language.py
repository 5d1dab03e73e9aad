"""Models of sequences: language models, translation, pairs of texts."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from batchcal.workload.task import Task
from tests.zoo.samples import WORDS, Generated, Pair, Sentences

CONTEXT: Final = 64


def next_word(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the words that are not padding."""
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=0)


def language_model_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return next_word(model(batch[:, :-1]), batch[:, 1:])


def padded(sentences: list[Tensor]) -> Tensor:
    return pad_sequence(sentences, batch_first=True)


def predicted_words(batch: Tensor) -> float:
    return float((batch[:, 1:] != 0).sum())


class Contexts(Generated[Tensor]):
    """Sequences of CONTEXT + 1 words."""

    def sample(self, index: int, generator: torch.Generator) -> Tensor:
        return 1 + (index + torch.randint(-2, 3, (CONTEXT + 1,), generator=generator).cumsum(0)) % (WORDS - 1)


class Block(nn.Module):
    """Causal attention and a feed-forward network, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.before(tokens)).chunk(3, -1)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        tokens = tokens + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        result: Tensor = tokens + self.feed_forward(self.between(tokens))
        return result


class GPT(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.head = nn.Linear(width, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(words) + self.position[: words.shape[1]]))
        return logits


def gpt(samples: int = 4096, width: int = 64, layers: int = 3) -> Task:
    model = GPT(width, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Task(model=model, optimizer=optimizer, train_data=Contexts(samples), loss=language_model_loss)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width, padding_idx=0)
        self.recurrent = kind(width, width, batch_first=True)
        self.head = nn.Linear(width, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(self.recurrent(self.embed(words))[0])
        return logits


def lstm(samples: int = 4096, width: int = 64) -> Task:
    """Long-tailed lengths; the costs of all samples are given."""
    data, model = Sentences(samples, typical=8, longest=400), Recurrent(nn.LSTM, width)
    return Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
        train_data=data,
        collate_fn=padded,
        loss=language_model_loss,
        weight_of=predicted_words,
        size_of=[float(data.length(index)) for index in range(samples)],
    )


def gru(samples: int = 4096, width: int = 64) -> Task:
    """Long-tailed lengths; no cost of a sample is given."""
    model = Recurrent(nn.GRU, width)
    return Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
        train_data=Sentences(samples, typical=8, longest=400),
        collate_fn=padded,
        loss=language_model_loss,
        weight_of=predicted_words,
    )


class Translator(nn.Module):
    """An encoder, a decoder that begins with the encoder's last state, and attention over the source."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width, padding_idx=0)
        self.encoder, self.decoder = nn.GRU(width, width, batch_first=True), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(2 * width, WORDS)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        encoded, _ = self.encoder(self.embed(source))
        # Padding comes last: the state after the last word is that of the last word itself.
        last = (source != 0).sum(1) - 1
        state = encoded[torch.arange(len(source), device=source.device), last].unsqueeze(0)
        decoded, _ = self.decoder(self.embed(target), state)
        scores = (decoded @ encoded.transpose(1, 2)).masked_fill((source == 0).unsqueeze(1), float("-inf"))
        logits: Tensor = self.head(torch.cat([decoded, scores.softmax(-1) @ encoded], -1))
        return logits


class Translations(Generated[Pair]):
    """A sentence and the same sentence in reverse, 4 to 40 words."""

    def sample(self, index: int, generator: torch.Generator) -> Pair:
        length = 4 + index * 7 % 37
        source = torch.randint(2, WORDS, (length,), generator=generator)
        return source, torch.cat([torch.ones(1, dtype=torch.long), source.flip(0)])


def both_padded(pairs: list[Pair]) -> Pair:
    return padded([source for source, _ in pairs]), padded([target for _, target in pairs])


def translation_loss(model: nn.Module, batch: Pair) -> Tensor:
    source, target = batch
    return next_word(model(source, target[:, :-1]), target[:, 1:])


def translated_words(batch: Pair) -> float:
    return predicted_words(batch[1])


def sequence_to_sequence(samples: int = 4096, width: int = 64) -> Task:
    model = Translator(width)
    return Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
        train_data=Translations(samples),
        collate_fn=both_padded,
        loss=translation_loss,
        weight_of=translated_words,
    )


class Views(Generated[Pair]):
    """Two noisy copies of one point."""

    def sample(self, index: int, generator: torch.Generator) -> Pair:
        point = torch.randn(64, generator=generator)
        first, second = (point + 0.1 * torch.randn(64, generator=generator) for _ in range(2))
        return first, second


def contrastive_loss(model: nn.Module, batch: Pair) -> Tensor:
    """Each first view finds its second view among those of the batch: the loss of a sample depends on the other samples."""
    first, second = (functional.normalize(model(view), dim=1) for view in batch)
    scores = first @ second.T / 0.1
    return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def contrastive(samples: int = 16384, width: int = 256) -> Task:
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Task(model=model, optimizer=optimizer, train_data=Views(samples), loss=contrastive_loss)
