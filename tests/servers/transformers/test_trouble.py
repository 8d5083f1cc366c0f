"""What ``transformers serve`` cannot do, and what our log says of it."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import MambaConfig, MambaForCausalLM

from tests.support.servers.metered import StartServer

pytestmark = [pytest.mark.engine, pytest.mark.slow]

EAGER = ("--attn-implementation", "eager")


@pytest.fixture
def mamba(tiny_model: Path, tmp_path: Path) -> Path:
    """A model without attention, with the tokenizer of the tiny one."""
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    config = MambaConfig(vocab_size=vocabulary, hidden_size=64, num_hidden_layers=2, state_size=8)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_model_that_cannot_be_batched_is_named_with_the_way_out(
    mamba: Path, start_server: StartServer
) -> None:
    """Its clients get an error of transformers'; the log says what to do."""
    with start_server(*EAGER, engine="transformers", model=mamba) as metered:
        asked = {"model": str(mamba), "prompt": "hello", "max_tokens": 4}
        assert metered.http("/v1/completions", asked)[0] == 500
        assert metered.metric("llm_carbon_meter_errors_total", where="batching") > 0
        assert "serve it without --continuous-batching" in metered.server.log.read_text()


def test_metrics_that_cannot_be_written_leave_it_unmetered(
    start_server: StartServer, tmp_path: Path
) -> None:
    """One line in the log, no traceback, and clients get their answers."""
    folder = tmp_path / "none"
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with start_server(engine="transformers", environment=variables) as metered:
        asked = {"model": metered.server.model_name, "prompt": "hello", "max_tokens": 4}
        assert metered.http("/v1/completions", asked)[0] == 200
        log = metered.server.log.read_text()
    assert f"PROMETHEUS_MULTIPROC_DIR={folder}: metrics cannot be written there" in log
    assert "This server is not metered" in log
    assert "Traceback" not in log


def test_without_batching_it_is_metered(mamba: Path, start_server: StartServer) -> None:
    """One request after the other, like any model."""
    with start_server(*EAGER, engine="transformers-plain", model=mamba) as metered:
        asked = {"model": str(mamba), "prompt": "hello", "max_tokens": 4, **metered.server.exact}
        metered.http("/v1/completions", asked, {"X-Request-Id": "mamba"})
        record = metered.record("mamba")
        assert min(record["prefill_joules"], record["decode_joules"]) > 0
