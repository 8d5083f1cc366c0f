"""The LLMCO2 paper's network: it sees a request and gives its energy by phase, without a law."""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch_geometric.nn import DenseSAGEConv

from llm_carbon_meter.predictor.features import GLOBAL_FEATURES, NODE_FEATURES
from llm_carbon_meter.training.fit.examples import Examples
from llm_carbon_meter.training.fit.network import DROPOUT, WIDTH

Floats = npt.NDArray[np.float64]

BATCH: Final = 512
"""As the paper has it."""
RATE: Final = 3e-3
DECAY: Final = 1e-3
BEND: Final = 0.1
"""Error beyond which a row counts less."""


class PhaseNetwork(nn.Module):
    """Logarithm of the energy of each phase of a request, beyond what it starts from.

    Args:
        width: of every hidden layer.
        dropout: on the pooled graph and between the linear layers.
    """

    def __init__(self, width: int = WIDTH, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.sage_1 = DenseSAGEConv(len(NODE_FEATURES), width)
        self.sage_2 = DenseSAGEConv(width, width)
        self.linear_1 = nn.Linear(width + len(GLOBAL_FEATURES), width)
        self.linear_2 = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, nodes: Tensor, linked: Tensor, mask: Tensor, described: Tensor) -> Tensor:
        """Logarithms, shape (batches, phases).

        Args:
            nodes: `NODE_FEATURES`, padded, shape (batches, phases, kernels, features).
            linked: neighbours of each node, shape (batches, kernels, kernels).
            mask: whether a kernel is one, shape (batches, kernels).
            described: `GLOBAL_FEATURES`, shape (batches, phases, features).
        """
        batches, phases, kernels, _ = nodes.shape
        links = linked[:, None].expand(-1, phases, -1, -1).reshape(-1, kernels, kernels)
        masks = mask[:, None].expand(-1, phases, -1).reshape(-1, kernels)
        x = nodes.flatten(0, 1)
        hidden = torch.relu(self.sage_1(x, links, masks))
        hidden = torch.relu(self.sage_2(hidden, links, masks))
        # A kernel counts by its share of the phase's roofline time.
        pooled = (hidden * x[..., -1:]).sum(1).reshape(batches, phases, -1)
        joined = torch.cat((self.dropout(pooled), described), -1)
        return Tensor(self.linear_2(self.dropout(torch.relu(self.linear_1(joined))))[..., 0])


def fit_phase_network(data: Examples, start: Floats, seed: int, epochs: int) -> PhaseNetwork:
    """Train on the logarithm of measured joules.

    Args:
        data: the examples.
        start: joules per request that the network's output multiplies, shape (n, phases).
        seed: of weights and order.
        epochs: passes over the examples.
    """
    torch.manual_seed(seed)
    network = PhaseNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    rounds = epochs * -(-len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=rounds)
    inputs, weights = _inputs(data), torch.from_numpy(data.weights).float()
    base, target = torch.from_numpy(start).float(), torch.from_numpy(np.log(data.joules)).float()
    network.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(data)), BATCH):
            output = network(*(tensor[batch] for tensor in inputs))
            error = torch.log((base[batch] * torch.exp(output)).sum(-1)) - target[batch]
            size = error.abs()
            bent = torch.where(size < BEND, size**2 / 2, BEND * (size - BEND / 2))
            optimizer.zero_grad()
            torch.autograd.backward((weights[batch] * bent).sum() / weights[batch].sum())
            optimizer.step()
            schedule.step()
    return network


def phase_logarithms(network: PhaseNetwork, data: Examples) -> Floats:
    """The network's output, shape (n, phases)."""
    network.eval()
    with torch.no_grad():
        return np.asarray(network(*_inputs(data)).double().numpy())


def _inputs(data: Examples) -> tuple[Tensor, ...]:
    arrays = (data.nodes, data.linked, data.mask, data.described)
    return tuple(torch.from_numpy(array).float() for array in arrays)
