"""Models of graphs, bags of items and rows of a table."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.workload.task import Task
from tests.zoo.samples import CLASSES, Generated, Pair

FEATURES: Final = 16
ITEMS: Final = 20_000


class Graph:
    """One graph, or several as one. A class of its own with a method `to`, as graph libraries have."""

    def __init__(self, nodes: Tensor, edges: Tensor, graph_of_node: Tensor, labels: Tensor) -> None:
        self.nodes, self.edges, self.graph_of_node, self.labels = nodes, edges, graph_of_node, labels

    def to(self, device: torch.device) -> Graph:
        return Graph(*(part.to(device) for part in (self.nodes, self.edges, self.graph_of_node, self.labels)))


class Graphs(Generated[Graph]):
    """Random graphs of 5 to `most` nodes."""

    def __init__(self, samples: int, most: int) -> None:
        super().__init__(samples)
        self.most = most

    def sample(self, index: int, generator: torch.Generator) -> Graph:
        count = 5 + int(torch.randint(0, self.most - 4, (), generator=generator))
        label = index % CLASSES
        return Graph(
            torch.randn(count, FEATURES, generator=generator) + label / CLASSES,
            torch.randint(0, count, (2, 4 * count), generator=generator),
            torch.zeros(count, dtype=torch.long),
            torch.tensor([label]),
        )


def joined(graphs: list[Graph]) -> Graph:
    """One graph of many parts, with the numbers of its nodes shifted."""
    counts = [len(graph.nodes) for graph in graphs]
    starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
    return Graph(
        torch.cat([graph.nodes for graph in graphs]),
        torch.cat([graph.edges + start for graph, start in zip(graphs, starts, strict=False)], 1),
        torch.repeat_interleave(torch.arange(len(graphs)), torch.tensor(counts)),
        torch.cat([graph.labels for graph in graphs]),
    )


class GraphNetwork(nn.Module):
    """Messages along the edges, twice; then the mean over the nodes of each graph."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, width)
        self.layers = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, graph: Graph) -> Tensor:
        nodes = self.embed(graph.nodes)
        source, target = graph.edges
        for layer in self.layers:
            received = torch.zeros_like(nodes).index_add(0, target, nodes[source])
            nodes = functional.relu(layer(torch.cat([nodes, received / 4], 1)))
        sums = nodes.new_zeros(len(graph.labels), nodes.shape[1]).index_add(0, graph.graph_of_node, nodes)
        counts = torch.bincount(graph.graph_of_node, minlength=len(graph.labels))
        logits: Tensor = self.head(sums / counts.unsqueeze(1))
        return logits


def graph_loss(model: nn.Module, graph: Graph) -> Tensor:
    return functional.cross_entropy(model(graph), graph.labels)


def graph_network(samples: int = 4096, width: int = 64, most: int = 60) -> Task:
    model = GraphNetwork(width)
    return Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_data=Graphs(samples, most),
        collate_fn=joined,
        loss=graph_loss,
    )


class Bags(NamedTuple):
    """Bags of items, one after another, and where each begins."""

    items: Tensor
    starts: Tensor
    labels: Tensor


class Baskets(Generated[Pair]):
    """1 to 50 items each."""

    def sample(self, index: int, generator: torch.Generator) -> Pair:
        count = 1 + int(torch.randint(0, 50, (), generator=generator))
        label = index % CLASSES
        return torch.randint(0, ITEMS // CLASSES, (count,), generator=generator) * CLASSES + label, torch.tensor(label)


def in_bags(baskets: list[Pair]) -> Bags:
    counts = torch.tensor([len(items) for items, _ in baskets])
    return Bags(
        torch.cat([items for items, _ in baskets]), counts.cumsum(0) - counts, torch.stack([label for _, label in baskets])
    )


class Recommender(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.items = nn.EmbeddingBag(ITEMS, width, mode="mean", sparse=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, items: Tensor, starts: Tensor) -> Tensor:
        logits: Tensor = self.head(self.items(items, starts))
        return logits


def bag_loss(model: nn.Module, bags: Bags) -> Tensor:
    return functional.cross_entropy(model(bags.items, bags.starts), bags.labels)


def embedding_bag(samples: int = 8192, width: int = 64) -> Task:
    """Sparse gradients."""
    model = Recommender(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return Task(model=model, optimizer=optimizer, train_data=Baskets(samples), collate_fn=in_bags, loss=bag_loss)


class Rows(Generated[Pair]):
    """Rows of numbers and their mean."""

    def sample(self, index: int, generator: torch.Generator) -> Pair:
        row = torch.randn(256, generator=generator)
        return row, row.mean().unsqueeze(0)


def squared_error(model: nn.Module, batch: Pair) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def wide_mlp(samples: int = 8192, width: int = 3000) -> Task:
    """Parameters, gradients and AdamW's two moments hold more than the activations of a hundred samples."""
    model = nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return Task(model=model, optimizer=optimizer, train_data=Rows(samples), loss=squared_error)
