"""The network in torch-geometric, as it is trained. `gnn.py` serves its weights in numpy.

Two GraphSAGE layers and two linear layers, as the LLMCO2 paper has; prefill and decode stay apart
all the way to an output of their own. Each output is the logarithm of what physics leaves over.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch_geometric.nn import DenseSAGEConv

from llm_carbon_meter.predictor.features import GLOBAL_FEATURES, NODE_FEATURES

WIDTH: Final = 32
DROPOUT: Final = 0.1
LARGEST: Final = 1.5
"""Bound of the logarithm: the network corrects by no more than this."""


class PhaseNetwork(nn.Module):
    """Residual of each phase.

    Args:
        width: of every hidden layer.
        dropout: on the pooled graph and between the linear layers.
        largest: bound of the output; inf for a network that stands alone.
    """

    def __init__(
        self, width: int = WIDTH, dropout: float = DROPOUT, largest: float = LARGEST
    ) -> None:
        super().__init__()
        self.sage_1 = DenseSAGEConv(len(NODE_FEATURES), width)
        self.sage_2 = DenseSAGEConv(width, width)
        self.linear_1 = nn.Linear(width + len(GLOBAL_FEATURES), width)
        self.linear_2 = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)
        self.largest = largest
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, nodes: Tensor, linked: Tensor, mask: Tensor, described: Tensor) -> Tensor:
        """Residuals, shape (batches, phases).

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
        output = self.linear_2(self.dropout(torch.relu(self.linear_1(joined))))[..., 0]
        if self.largest == float("inf"):
            return Tensor(output)
        return Tensor(self.largest * torch.tanh(output / self.largest))
