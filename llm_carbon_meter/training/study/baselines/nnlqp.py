"""NNLQP, ported: a graph network over the operators of one layer, without phases or roofline.

Features of a node are its kind and its sizes, scaled with fixed constants. Raw totals and raw
joules, which span five decades, do not train: static features are logarithms, centred and scaled
as the training rows have them; labels are divided by the largest, where -logsigmoid is nearly an
exponential, and the output starts at the smallest, for from above all predictions fall to 0. A
platform is a GPU and an engine. A graph that several rows of a mini-batch share is computed once.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

from llm_carbon_meter.physics.kernel_graph import layer_graph
from llm_carbon_meter.physics.kernels import kernel_table
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.training.data.physics_features import column, engine_name, physics, placement
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.data.splits import configuration
from llm_carbon_meter.training.study.baselines.baseline import Fitted, Floats, distinct, one_hot

FULL_WIDTH: Final = 512
NARROW_WIDTH: Final = 16
"""As the authors of LLMCO2 released their comparison with it."""
SIZE_SCALE: Final = 8192.0
"""Of the elements that an operator reads and writes per token."""
COUNT_SCALE: Final = 64.0
"""Of the layers."""
DROPOUT: Final = 0.05
BATCH_ROWS: Final = 64
LEARNING_RATE: Final = 1e-3
MOST_GRADIENT: Final = 1.0
"""Norm above which a gradient is cut: a small label predicted far too high outweighs all others."""
LEAST_DEVIATION: Final = 1e-6
"""Below it a static feature is the same in all training rows, but for rounding."""
VALIDATION_SHARE: Final = 0.1

GraphKey = tuple[ModelSpec, int]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to train."""

    epochs: int
    patience: int
    """Epochs without a better validation error before it stops; the best epoch is kept."""


BUDGET: Final = Budget(epochs=60, patience=20)
"""About a minute on one core with 1200 rows at full width."""
NARROW_BUDGET: Final = Budget(epochs=200, patience=40)
"""A narrow network needs more epochs, each a fifth as long or less."""


class Encoding(NamedTuple):
    """What the training rows fix."""

    kinds: list[str]
    gpus: list[str]
    engines: list[str]
    static_mean: Floats
    static_deviation: Floats
    joules: float
    """The largest label."""
    least_label: float
    """The smallest label over the largest."""


class Batch(NamedTuple):
    """Some rows, and the distinct graphs of their models as one."""

    nodes: Tensor
    """(nodes, kinds + 3)"""
    edges: Tensor
    """(2, edges), each in both directions"""
    graph_of_node: Tensor
    """(nodes,)"""
    graph_of_row: Tensor
    """(rows,)"""
    static: Tensor
    """(rows, 6 + GPUs + engines)"""


class Labelled(NamedTuple):
    """A batch with what was measured."""

    batch: Batch
    joules: Tensor
    """Over the largest, shape (rows,)."""
    weights: Tensor


class Network(nn.Module):
    """Two convolutions, the sum over nodes, and two layers on it and the static features."""

    def __init__(self, num_node: int, num_static: int, width: int, least_label: float) -> None:
        super().__init__()
        self.conv_1 = SAGEConv(num_node, width, normalize=True)
        self.conv_2 = SAGEConv(width, width, normalize=True)
        self.static = nn.Sequential(nn.Linear(num_static, width), nn.Dropout(DROPOUT), nn.ReLU())
        last = nn.Linear(width, 1)
        nn.init.constant_(last.bias, -math.log(math.expm1(least_label)))
        self.head = nn.Sequential(
            nn.Linear(2 * width, width),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            last,
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, batch: Batch) -> Tensor:
        """Joules over the largest label, above 0, shape (rows,)."""
        x = self.dropout(torch.relu(self.conv_1(batch.nodes, batch.edges)))
        x = self.dropout(torch.relu(self.conv_2(x, batch.edges)))  # (nodes, width)
        num_graphs = int(batch.graph_of_node[-1]) + 1
        graphs = x.new_zeros(num_graphs, x.shape[1]).index_add(0, batch.graph_of_node, x)
        joined = torch.cat([graphs[batch.graph_of_row], self.static(batch.static)], dim=1)
        output: Tensor = self.head(joined)
        positive = -nn.functional.logsigmoid(output).squeeze(1)
        return positive.clamp_min(torch.finfo(positive.dtype).tiny)


def fit_nnlqp(
    rows: Sequence[Row], seed: int, width: int = FULL_WIDTH, budget: Budget = BUDGET
) -> Fitted:
    """Relative squared error, Adam; a tenth of the configurations say when to stop."""
    encoding = _encoding(rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _trained(rows, encoding, seed, width, budget)

    def predict(rows: Sequence[Row]) -> Floats:
        with torch.no_grad():
            chunks = _chunks(rows, np.arange(len(rows)))
            output = [network(_batch(encoding, chunk)).numpy() for chunk in chunks]
        joules: Floats = encoding.joules * np.concatenate(output).astype(np.float64)
        return joules

    return Fitted(predict)


def _trained(
    rows: Sequence[Row], encoding: Encoding, seed: int, width: int, budget: Budget
) -> Network:
    """The network of the best epoch."""
    generator = np.random.default_rng(seed)
    fitted, validated = _validation_apart(rows, generator)
    check = _labelled(validated, encoding)
    network = Network(
        len(encoding.kinds) + 3, len(check.batch.static[0]), width, encoding.least_label
    )
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    best, best_state, waited = np.inf, copy.deepcopy(network.state_dict()), 0
    for _ in range(budget.epochs):
        network.train()
        for chunk in _chunks(fitted, generator.permutation(len(fitted))):
            _step(network, optimizer, _labelled(chunk, encoding))
        network.eval()
        with torch.no_grad():
            error = float(_loss(network, check))
        waited += 1
        if error < best:
            best, best_state, waited = error, copy.deepcopy(network.state_dict()), 0
        if waited > budget.patience:
            break
    network.load_state_dict(best_state)
    return network.eval()


def _step(network: Network, optimizer: torch.optim.Optimizer, part: Labelled) -> None:
    optimizer.zero_grad()
    _loss(network, part).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), MOST_GRADIENT)
    optimizer.step()


def _loss(network: Network, part: Labelled) -> Tensor:
    relative: Tensor = network(part.batch) / part.joules - 1
    return (part.weights * relative**2).sum() / part.weights.sum()


def _labelled(rows: Sequence[Row], encoding: Encoding) -> Labelled:
    joules = column(rows, "energy_joules") / encoding.joules
    return Labelled(_batch(encoding, rows), _tensor(joules), _tensor(column(rows, "weight")))


def _validation_apart(
    rows: Sequence[Row], generator: np.random.Generator
) -> tuple[list[Row], list[Row]]:
    """Rows to fit and rows that say when to stop; repeated runs stay together."""
    configurations = list(dict.fromkeys(map(configuration, rows)))
    num_held = max(1, round(VALIDATION_SHARE * len(configurations)))
    chosen = generator.permutation(len(configurations))[:num_held]
    held = {configurations[number] for number in chosen}
    fitted = [row for row in rows if configuration(row) not in held]
    return fitted, [row for row in rows if configuration(row) in held]


def _chunks(rows: Sequence[Row], order: npt.NDArray[np.int64]) -> Iterator[list[Row]]:
    """Mini-batches."""
    for start in range(0, len(order), BATCH_ROWS):
        yield [rows[number] for number in order[start : start + BATCH_ROWS]]


def _encoding(rows: Sequence[Row]) -> Encoding:
    keys = set(map(_graph_key, rows))
    static = _log_totals(rows)
    deviation, joules = static.std(axis=0), column(rows, "energy_joules")
    return Encoding(
        kinds=distinct([kernel.kind for key in keys for kernel in kernel_table(*key)]),
        gpus=distinct([row.gpu for row in rows]),
        engines=distinct([engine_name(row) for row in rows]),
        static_mean=static.mean(axis=0),
        static_deviation=np.where(deviation > LEAST_DEVIATION, deviation, 1.0),
        joules=float(joules.max()),
        least_label=float(joules.min() / joules.max()),
    )


def _log_totals(rows: Sequence[Row]) -> Floats:
    """ln of batch, operations and bytes of all its requests, parameters, L and N; (n, 6)."""
    found, batch = physics(rows), column(rows, "concurrency")
    totals = (
        batch,
        batch * found.operations,
        np.array([row.spec.parameters for row in rows], np.float64),
        batch * found.moved_bytes,
        column(rows, "prompt_tokens"),
        column(rows, "output_tokens"),
    )
    return np.log(np.stack(totals, axis=1))


def _graph_key(row: Row) -> GraphKey:
    return row.spec, placement(row).tensor_parallel


def _batch(encoding: Encoding, rows: Sequence[Row]) -> Batch:
    keys = list(dict.fromkeys(map(_graph_key, rows)))
    nodes = [_nodes(key, encoding) for key in keys]
    sizes = [len(one) for one in nodes]
    first = np.cumsum([0, *sizes[:-1]])
    edges = [_edges(key) + start for key, start in zip(keys, first, strict=True)]
    static = np.hstack(
        [
            (_log_totals(rows) - encoding.static_mean) / encoding.static_deviation,
            one_hot([row.gpu for row in rows], encoding.gpus),
            one_hot([engine_name(row) for row in rows], encoding.engines),
        ]
    )
    return Batch(
        nodes=_tensor(np.concatenate(nodes)),
        edges=torch.from_numpy(np.concatenate(edges, axis=1)),
        graph_of_node=torch.repeat_interleave(torch.tensor(sizes)),
        graph_of_row=torch.tensor([keys.index(_graph_key(row)) for row in rows]),
        static=_tensor(static),
    )


def _nodes(key: GraphKey, encoding: Encoding) -> Floats:
    """Kind, and elements in and out and places in the model; (nodes, kinds + 3)."""
    kernels = kernel_table(*key)
    sizes = [
        (kernel.d_in / SIZE_SCALE, kernel.d_out / SIZE_SCALE, kernel.count / COUNT_SCALE)
        for kernel in kernels
    ]
    return np.hstack([one_hot([kernel.kind for kernel in kernels], encoding.kinds), sizes])


@lru_cache(maxsize=256)
def _edges(key: GraphKey) -> npt.NDArray[np.int64]:
    """In both directions, as numbers of nodes; (2, edges)."""
    graph = layer_graph(*key)
    place = {name: number for number, name in enumerate(graph.nodes)}
    forth = np.array([(place[source], place[target]) for source, target in graph.edges]).T
    return np.concatenate([forth, forth[::-1]], axis=1)


def _tensor(values: Floats) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
