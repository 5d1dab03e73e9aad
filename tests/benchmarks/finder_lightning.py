"""Lightning's batch-size finder on one of our tasks, as its users call it. Started by finders.py under a limit.

Prints one JSON line: the answer, every size that it really ran a step with, seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time

import lightning.pytorch as lightning
import torch
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from batchcal.workload.spec.load import load_task
from batchcal.workload.task import Task
from tests.benchmarks._reference import reference_of
from tests.benchmarks._task import samples_in


class Module(lightning.LightningModule):
    """The task as Lightning wants it: nothing is added but a note of the sizes that were run."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task
        self.batch_size = 1
        self.ran: list[int] = []

    def training_step(self, batch: object, index: int) -> torch.Tensor:
        loss: torch.Tensor = self.task.loss(self.model, batch)
        self.ran.append(samples_in(batch))
        return loss

    def validation_step(self, batch: object, index: int) -> None:
        if self.task.eval_step is not None:
            self.task.eval_step(self.model, batch)
        else:
            self.task.loss(self.model, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.task.optimizer

    def train_dataloader(self) -> DataLoader[object]:
        return DataLoader(self.task.train_data, batch_size=self.batch_size, collate_fn=self.task.collate_fn)

    def val_dataloader(self) -> DataLoader[object]:
        data = self.task.train_data if self.task.eval_data is None else self.task.eval_data
        return DataLoader(data, batch_size=self.batch_size, collate_fn=self.task.collate_fn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--mode", choices=["power", "binsearch"], required=True)
    parser.add_argument("--ceiling", type=int, default=8192)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module(load_task(reference_of(arguments.config), device="cpu"))
    with tempfile.TemporaryDirectory(prefix="finder-") as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        began = time.perf_counter()
        answer = Tuner(trainer).scale_batch_size(module, mode=arguments.mode, max_val=arguments.ceiling)
        seconds = time.perf_counter() - began
    print(json.dumps({"answer": answer, "ran": sorted(set(module.ran)), "search_s": seconds}))


if __name__ == "__main__":
    main()
