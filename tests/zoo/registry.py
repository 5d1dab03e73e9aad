"""The zoo: small models of many kinds, as ordinary tasks, with what is true of each. Importing this loads no torch."""

from __future__ import annotations

from typing import Final, NamedTuple


class ZooEntry(NamedTuple):
    """What is true of a task; tests/zoo/test_zoo.py checks it."""

    spec: str
    mean_over_weight: bool = True
    """The loss of a batch is the mean over its weight, so that gradients do not depend on how a batch is divided."""
    batch_statistics: bool = False
    """A layer (BatchNorm) uses statistics of the batch in training mode."""
    heavy_tailed: bool = False
    """The largest sample is more than ten times as large as the median."""


ZOO: Final[dict[str, ZooEntry]] = {
    "convolutional": ZooEntry("tests.zoo.images:convolutional"),
    "u-net": ZooEntry("tests.zoo.images:u_net"),
    "residual": ZooEntry("tests.zoo.images:residual", batch_statistics=True),
    "vision-transformer": ZooEntry("tests.zoo.images:vision_transformer"),
    "volumes": ZooEntry("tests.zoo.images:volumes"),
    "autoencoder": ZooEntry("tests.zoo.images:autoencoder"),
    "gpt": ZooEntry("tests.zoo.language:gpt"),
    "lstm": ZooEntry("tests.zoo.language:lstm", heavy_tailed=True),
    "gru": ZooEntry("tests.zoo.language:gru", heavy_tailed=True),
    "sequence-to-sequence": ZooEntry("tests.zoo.language:sequence_to_sequence"),
    "contrastive": ZooEntry("tests.zoo.language:contrastive", mean_over_weight=False),
    "graph-network": ZooEntry("tests.zoo.structures:graph_network"),
    "embedding-bag": ZooEntry("tests.zoo.structures:embedding_bag"),
    "wide-mlp": ZooEntry("tests.zoo.structures:wide_mlp"),
    "patchtst": ZooEntry("batchcal.workload.examples.patchtst:task"),
}
DATA: Final[dict[str, ZooEntry]] = {
    "documents": ZooEntry("tests.zoo.data:documents", heavy_tailed=True),
    "molecules": ZooEntry("tests.zoo.data:molecules", heavy_tailed=True),
    "compressed": ZooEntry("tests.zoo.data:compressed", heavy_tailed=True),
    "copied-on-read": ZooEntry("tests.zoo.data:copied_on_read"),
    "cached-on-read": ZooEntry("tests.zoo.data:cached_on_read"),
}
"""Tasks whose data is harder than their model."""
TASKS: Final = ZOO | DATA
