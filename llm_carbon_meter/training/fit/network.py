"""The network in torch-geometric, as it is trained: two GraphSAGE and two linear layers.

It sees a deployment and corrects the rates of its step law; `gnn.py` serves its weights in numpy.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch_geometric.nn import DenseSAGEConv

from llm_carbon_meter.predictor.features import REFERENCE_FEATURES, REFERENCE_GLOBALS, SHARES
from llm_carbon_meter.predictor.gnn import LARGEST
from llm_carbon_meter.predictor.step_law import FACTORS

WIDTH: Final = 32
DROPOUT: Final = 0.1
LEAST_SCALE: Final = 1e-3
"""A feature that never varies says nothing."""


class Ensemble(nn.Module):
    """Networks that differ by their first weights; their mean errs less than each of them."""

    def __init__(self, members: Sequence["RateNetwork"]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, nodes: Tensor, linked: Tensor, mask: Tensor, described: Tensor) -> Tensor:
        """See `RateNetwork.forward`."""
        outputs = [member(nodes, linked, mask, described) for member in self.members]
        return torch.stack(outputs).mean(0)


class RateNetwork(nn.Module):
    """How far a deployment's `FACTORS` are from the fitted ones, in units of `gnn.CORRECTION`."""

    nodes_middle: Tensor
    nodes_scale: Tensor
    described_middle: Tensor
    described_scale: Tensor

    def __init__(self, width: int = WIDTH, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.sage_1 = DenseSAGEConv(len(REFERENCE_FEATURES), width)
        self.sage_2 = DenseSAGEConv(width, width)
        self.linear_1 = nn.Linear(width + len(REFERENCE_GLOBALS), width)
        self.linear_2 = nn.Linear(width, len(FACTORS))
        self.dropout = nn.Dropout(dropout)
        for name, size in (
            ("nodes", len(REFERENCE_FEATURES)),
            ("described", len(REFERENCE_GLOBALS)),
        ):
            self.register_buffer(f"{name}_middle", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)

    def standardise(self, nodes: Tensor, mask: Tensor, described: Tensor) -> None:
        """From now on see features as distances from the mean of these, in deviations."""
        for name, seen in (("nodes", nodes[mask > 0]), ("described", described)):
            setattr(self, f"{name}_middle", seen.mean(0))
            setattr(self, f"{name}_scale", seen.std(0) + LEAST_SCALE)

    def forward(self, nodes: Tensor, linked: Tensor, mask: Tensor, described: Tensor) -> Tensor:
        """Corrections, shape (deployments, factors).

        Args:
            nodes: `REFERENCE_FEATURES`, padded, shape (deployments, kernels, features).
            linked: neighbours of each node, shape (deployments, kernels, kernels).
            mask: whether a kernel is one, shape (deployments, kernels).
            described: `REFERENCE_GLOBALS`, shape (deployments, features).
        """
        seen = (nodes - self.nodes_middle) / self.nodes_scale * mask[..., None]
        hidden = torch.relu(self.sage_1(seen, linked, mask))
        hidden = torch.relu(self.sage_2(hidden, linked, mask))
        # A kernel counts by its share of the roofline time.
        pooled = (hidden * nodes[..., SHARES].mean(-1, keepdim=True)).sum(1)
        around = (described - self.described_middle) / self.described_scale
        joined = torch.cat((self.dropout(pooled), around), -1)
        output = self.linear_2(self.dropout(torch.relu(self.linear_1(joined))))
        return Tensor(LARGEST * torch.tanh(output / LARGEST))
