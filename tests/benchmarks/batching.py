"""What memory-aware batches are worth where lengths have a long tail: tokens/s at the same budget of padded tokens.

A small transformer is trained on lognormal lengths. Every contender makes micro-batches of at most `--budget` padded tokens and
steps the optimizer about every `--effective-batch` samples. They take turns in every round, on a part of the epoch drawn at
random.

- random: shuffled samples, as many as fit where all are of the longest length (the safe fixed size).
- megabatch: Hugging Face's `group_by_length`: shuffled, in megabatches of 50 batches of that size, each sorted by falling length.
- max-tokens: fairseq's batch_by_size: all samples sorted, batches filled up to the budget, the batches shuffled.
- window-1: ours, the samples of each step as plain shuffling has them.
- ours: as it comes, the window chosen.
- limit: every sample as long as the mean; nothing is padded.

    python -m tests.benchmarks.batching --rounds 7

Then the sampler alone, arranging and handing out 1,000,000 samples: its time as a share of the epoch that they would take here.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from batchcal.extras.batching.packing import CostBudget
from batchcal.extras.batching.sampler import MemoryAwareBatchSampler
from batchcal.machine.meters import read_status, reset_peak
from tests.benchmarks._limits import ROOT
from tests.benchmarks._report import MIB, Journal, finish, paired_ratio, rounds, say, table

SIGMAS: Final = (0.35, 0.6, 0.9)
MEDIAN: Final = 64
LONGEST: Final = 512
SHORTEST: Final = 4
VOCABULARY: Final = 4096
SAMPLES: Final = 20_000
MEGABATCH: Final = 50
"""Batches, as in transformers' LengthGroupedSampler, unless there are fewer than four megabatches."""
MANY: Final = 1_000_000
REACH: Final = {"against_limit": 0.85, "waste": 0.05, "sampler_share": 0.01}
CLOCKS: Final = {"wall": time.perf_counter, "cpu": time.process_time}
CONTENDERS: Final = ("random", "megabatch", "max-tokens", "window-1", "ours", "limit")

Steps = list[list[list[int]]]
"""Of optimizer steps: their micro-batches' samples."""


def lengths_of(sigma: float, samples: int, seed: int = 0) -> Tensor:
    """(samples) int64. The limits cut off little: 1 in 20,000 and more at sigma 0.35, 1 in 100 at 0.9."""
    generator = torch.Generator().manual_seed(seed)
    return (MEDIAN * torch.exp(sigma * torch.randn(samples, generator=generator))).round().clamp(SHORTEST, LONGEST).long()


def in_steps(batches: Sequence[list[int]], effective_batch: int) -> Steps:
    """Batches of somebody else's, a step whenever so many samples have come."""
    steps: Steps = [[]]
    count = 0
    for batch in batches:
        steps[-1].append(batch)
        count += len(batch)
        if count >= effective_batch * len(steps):
            steps.append([])
    return [step for step in steps if step]


def random_batches(lengths: list[int], budget: int) -> list[list[int]]:
    size = budget // LONGEST
    order = torch.randperm(len(lengths)).tolist()
    return [order[at : at + size] for at in range(0, len(order), size)]


def megabatches(lengths: list[int], budget: int) -> list[list[int]]:
    """transformers' get_length_grouped_indices, in batches of the safe size."""
    size = budget // LONGEST
    many = max(1, min(len(lengths) // (size * 4), MEGABATCH)) * size
    order = torch.randperm(len(lengths)).tolist()
    sorted_ = [sorted(order[at : at + many], key=lengths.__getitem__, reverse=True) for at in range(0, len(order), many)]
    flat = [index for megabatch in sorted_ for index in megabatch]
    return [flat[at : at + size] for at in range(0, len(flat), size)]


def max_tokens(lengths: list[int], budget: int, multiple: int = 8) -> list[list[int]]:
    """fairseq's ordered_indices and batch_by_size with its default of sizes that are multiples of 8 where they can be."""
    order = sorted(torch.randperm(len(lengths)).tolist(), key=lengths.__getitem__)
    batches: list[list[int]] = []
    batch: list[int] = []
    for index in order:
        batch.append(index)
        if len(batch) * lengths[index] > budget:
            whole = max(multiple * ((len(batch) - 1) // multiple), (len(batch) - 1) % multiple)
            batches.append(batch[:whole])
            batch = batch[whole:]
    batches.append(batch)
    random.shuffle(batches)
    return batches


def ours(lengths: list[int], budget: int, effective_batch: int, window: int | None) -> Steps:
    sampler = MemoryAwareBatchSampler(
        lengths, effective_batch=effective_batch, budget=CostBudget(float(budget)), window=window, worst_first=False
    )
    return [[list(piece) for piece in group] for group in sampler.planned()]


def steps_of(name: str, lengths: list[int], budget: int, effective_batch: int) -> Steps:
    """An epoch of one contender."""
    torch.manual_seed(0)
    random.seed(0)
    if name in {"ours", "window-1"}:
        return ours(lengths, budget, effective_batch, None if name == "ours" else 1)
    if name == "limit":
        size = budget // lengths[0]
        batches = [list(range(at, min(at + size, len(lengths)))) for at in range(0, len(lengths), size)]
        return in_steps(batches, effective_batch)
    makers: dict[str, Callable[[list[int], int], list[list[int]]]] = {
        "random": random_batches,
        "megabatch": megabatches,
        "max-tokens": max_tokens,
    }
    return in_steps(makers[name](lengths, budget), effective_batch)


class Classifier(nn.Module):
    """A transformer encoder over tokens, padded with 0; the mean over the real ones decides."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.position = nn.Parameter(0.02 * torch.randn(LONGEST, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.decide = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length) -> (batch, 2)"""
        real = (tokens != 0).unsqueeze(-1)
        seen: Tensor = self.encoder(self.words(tokens) + self.position[: tokens.shape[1]], src_key_padding_mask=~real.squeeze(-1))
        pooled = (seen * real).sum(1) / real.sum(1)
        answer: Tensor = self.decide(pooled)
        return answer


class Trainer:
    """Trains on texts of given lengths; the tokens are of no matter."""

    def __init__(self, width: int, layers: int, device: torch.device, clock: Callable[[], float]) -> None:
        torch.manual_seed(0)
        self._device, self._clock = device, clock
        self._model = Classifier(width, layers).to(device)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._tokens = torch.randint(1, VOCABULARY, (LONGEST,))

    def train(self, steps: Steps, lengths: list[int]) -> float:
        """Seconds."""
        began = self._clock()
        for step in steps:
            total = sum(map(len, step))
            for piece in step:
                batch = pad_sequence([self._tokens[: lengths[index]] for index in piece], batch_first=True).to(self._device)
                labels = torch.tensor([index % 2 for index in piece], device=self._device)
                loss = functional.cross_entropy(self._model(batch), labels) * (len(piece) / total)
                loss.backward()
                loss.item()
            self._optimizer.step()
            self._optimizer.zero_grad()
        return self._clock() - began


def peak_of(work: Callable[[], float], device: torch.device) -> tuple[float, float]:
    """What `work` gave, and the most MiB that were held meanwhile beyond what was before."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        before = torch.accelerator.memory_allocated(device)
        return work(), (torch.accelerator.max_memory_allocated(device) - before) / MIB
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    status = read_status()
    before = 0 if status is None else status.hard_bytes + status.file_bytes
    told = work()
    status = read_status()
    return told, 0.0 if status is None else (status.peak_resident_bytes - before) / MIB


def padded(piece: Sequence[int], lengths: list[int]) -> int:
    return len(piece) * max(lengths[index] for index in piece)


def waste_of(steps: Steps, lengths: list[int]) -> float:
    room = sum(padded(piece, lengths) for step in steps for piece in step)
    return 1 - sum(lengths[index] for step in steps for piece in step for index in piece) / room


def lap(trainer: Trainer, steps: Steps, lengths: list[int], part: slice, device: torch.device) -> dict[str, float]:
    """These steps of the epoch."""
    taken = [index for step in steps[part] for piece in step for index in piece]
    seconds, peak = peak_of(lambda: trainer.train(steps[part], lengths), device)
    tokens = sum(lengths[index] for index in taken)
    return {"tokens_per_s": tokens / seconds, "samples_per_s": len(taken) / seconds, "peak_mib": peak}


def part_of(steps: Steps, samples: int, number: int) -> slice:
    """About so many samples, drawn anew for each round."""
    wanted = max(1, round(samples * len(steps) / SAMPLES))
    first = random.Random(number).randrange(max(1, len(steps) - wanted))
    return slice(first, first + wanted)


def sampler_alone(
    sigma: float, budget: int, effective_batch: int, window: int | None, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds for a whole epoch, the second: what the first has besides (finding the window) is told apart."""
    lengths = lengths_of(sigma, MANY).double()
    began = clock()
    sampler = MemoryAwareBatchSampler(
        lengths, effective_batch=effective_batch, budget=CostBudget(float(budget)), window=window, worst_first=False
    )
    made = clock()
    first = next(iter(sampler))
    begun = clock()
    count = sum(map(len, sampler))
    ended = clock()
    assert count == MANY
    assert first
    return {"made_s": made - began, "first_batch_s": begun - made, "epoch_s": ended - begun, "window": sampler.settings.window}


def measured(journal: Journal, arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Rows: one for each sigma and contender."""
    device = torch.device(arguments.device)
    trainer = Trainer(arguments.width, arguments.layers, device, CLOCKS[arguments.clock])
    budget, effective_batch = arguments.budget, arguments.effective_batch
    for sigma in (float(text) for text in arguments.sigmas.split(",")):
        lengths: list[int] = lengths_of(sigma, SAMPLES).tolist()
        mean = round(statistics.mean(lengths))
        own = {name: [mean] * SAMPLES if name == "limit" else lengths for name in CONTENDERS}
        steps = {name: steps_of(name, own[name], budget, effective_batch) for name in CONTENDERS}
        for name in CONTENDERS:  # the first steps are slower
            trainer.train(steps[name][:1], own[name])
        for turn, name in enumerate(rounds(CONTENDERS, arguments.rounds)):
            key = {"sigma": sigma, "name": name, "round": turn // len(CONTENDERS), "budget": budget, "step": effective_batch}
            if journal.find(**key) is None:
                part = part_of(steps[name], arguments.samples, turn // len(CONTENDERS))
                told = lap(trainer, steps[name], own[name], part, device)
                journal.add({**key, **told})
                say(f"sigma {sigma}, round {key['round']}: {name} {told['tokens_per_s']:.0f} tokens/s")
        rates = {name: series(journal, sigma, name, arguments, "tokens_per_s") for name in CONTENDERS}
        for name in CONTENDERS:
            pieces = [piece for step in steps[name] for piece in step]
            yield {
                "sigma": sigma,
                "contender": name,
                "tokens_per_s": round(statistics.median(rates[name])),
                "against_limit": round(paired_ratio(rates[name], rates["limit"]), 3),
                "ours_is": round(paired_ratio(rates["ours"], rates[name]), 3),
                "waste": round(waste_of(steps[name], own[name]), 4),
                "micro_batches_per_step": round(len(pieces) / len(steps[name]), 2),
                "samples_per_micro_batch": round(SAMPLES / len(pieces), 1),
                "most_padded_tokens": max(padded(piece, own[name]) for piece in pieces),
                "peak_mib": round(max(series(journal, sigma, name, arguments, "peak_mib"))),
                "samples_per_s": statistics.median(series(journal, sigma, name, arguments, "samples_per_s")),
            }


def series(journal: Journal, sigma: float, name: str, arguments: argparse.Namespace, what: str) -> list[float]:
    """One value per round."""
    key = {"sigma": sigma, "name": name, "budget": arguments.budget, "step": arguments.effective_batch}
    found = (journal.find(round=number, **key) for number in range(arguments.rounds))
    return [value for row in found if row is not None and isinstance(value := row[what], float)]


def alone(rows: Sequence[dict[str, object]], arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """The sampler's own time against that of the epoch it is for."""
    for row in rows:
        if row["contender"] in {"ours", "window-1"} and isinstance(row["sigma"], float):
            window = None if row["contender"] == "ours" else 1
            clock = CLOCKS[arguments.clock]
            told = sampler_alone(row["sigma"], arguments.budget, arguments.effective_batch, window, clock)
            rate = row["samples_per_s"]
            assert isinstance(rate, float)
            yield {
                "sigma": row["sigma"],
                "contender": row["contender"],
                "window": told["window"],
                "made_s": round(told["made_s"], 2),
                "first_batch_s": round(told["first_batch_s"], 2),
                "sampler_samples_per_s": round(MANY / told["epoch_s"]),
                "sampler_us_per_sample": round(1e6 * told["epoch_s"] / MANY, 2),
                "sampler_share": round(told["epoch_s"] / (MANY / rate), 5),
            }


def summary_of(rows: Sequence[dict[str, object]], samplers: Sequence[dict[str, object]]) -> dict[str, object]:
    """The worst of all sigmas."""
    mine = [row for row in rows if row["contender"] == "ours"]
    against_limit = min(float(str(row["against_limit"])) for row in mine)
    waste = max(float(str(row["waste"])) for row in mine)
    share = max(float(str(row["sampler_share"])) for row in samplers)
    ratios = {
        f"against_{row['contender']}_{row['sigma']}": row["ours_is"] for row in rows if row["contender"] not in {"ours", "limit"}
    }
    return {
        "against_limit_least": against_limit,
        "waste_most": waste,
        "sampler_share_most": share,
        "within_reach": against_limit >= REACH["against_limit"] and waste <= REACH["waste"] and share <= REACH["sampler_share"],
        **ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigmas", default=",".join(map(str, SIGMAS)))
    parser.add_argument("--budget", type=int, default=8 * LONGEST, help="padded tokens of a micro-batch")
    parser.add_argument("--effective-batch", type=int, default=256)
    parser.add_argument("--samples", type=int, default=1024, help="of a turn, about")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own number")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with --threads 1, where others use the machine too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "batching.jsonl")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = list(measured(Journal(arguments.journal), arguments))
    samplers = list(alone(rows, arguments))
    print(table(samplers))
    finish("batching", rows, {**summary_of(rows, samplers), "sampler": samplers})


if __name__ == "__main__":
    main()
