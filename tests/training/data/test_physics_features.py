"""Physical columns of rows: their conventions, and rows that are laid out oddly."""

import numpy as np
import pytest

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.training.data.physics_features import physics, placement, row_phases
from tests.support.made_rows import made_row


def test_one_request_has_its_share_of_the_batch() -> None:
    """Weights dominate decode at small batches, so two requests share what one would pay."""
    found = physics([made_row(concurrency=1.0), made_row(concurrency=2.0)])
    assert found.decode_board_joules[1] == pytest.approx(found.decode_board_joules[0] / 2, rel=0.05)
    assert found.operations[1] == pytest.approx(found.operations[0])
    assert found.step_board_watts[1] == found.step_board_watts[0] / 2
    assert found.sequence_step_board_watts[1] == found.sequence_step_board_watts[0]


def test_decode_of_one_request_reads_all_weights_in_every_step() -> None:
    """199 steps of 16 GB at 3.35 TB/s and 700 W, and a little KV cache."""
    row = made_row(concurrency=1.0)
    embedding = row.spec.vocab_size * row.spec.hidden_size * 2
    weights = 2 * row.spec.parameters - embedding  # looked up, not streamed
    expected = 199 * weights / gpu_spec("H100").bandwidth_bytes_per_s * 700
    assert physics([row]).decode_board_joules[0] == pytest.approx(expected, rel=0.02)


def test_all_gpus_of_a_row_are_powered() -> None:
    """On four GPUs each works a quarter as long; only the network is new."""
    found = physics([made_row(), made_row(num_gpus=4)])
    assert found.compute_board_joules[1] == pytest.approx(found.compute_board_joules[0], rel=0.02)
    assert found.step_board_watts[1] == 4 * found.step_board_watts[0]
    assert found.network_bytes[0] == 0 < found.network_bytes[1]


def test_replicas_share_the_requests() -> None:
    """Two replicas of one GPU serve 16 requests as each alone would serve 8."""
    found = physics([made_row(), made_row(num_gpus=2, data_parallel=2, concurrency=16.0)])
    assert np.array([[column[0], column[1]] for column in found]) == pytest.approx(
        np.array([[column[0], column[0]] for column in found])
    )


def test_gpus_that_do_not_divide_the_heads_are_idle() -> None:
    """32 heads on 5 GPUs use 4, and the fifth takes its part of the power."""
    odd, even = made_row(num_gpus=5), made_row(num_gpus=4)
    assert placement(odd) == (1, 4, 1)
    assert placement(even) == (1, 4, 0)
    assert row_phases(odd) == row_phases(even)
    found = physics([odd, even])
    assert found.operations[0] == found.operations[1]
    assert found.board_joules[0] == pytest.approx(found.board_joules[1] * 5 / 4)
