"""Real servers of several processes: tensor and data parallel, two API servers, sudden ends."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.support.scripted_nvml import uuid_of
from tests.support.servers.completions import complete, complete_together
from tests.support.servers.metered import (
    MIDDLEWARE,
    VLLM_SERVE,
    Metered,
    StartServer,
    assert_balanced,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.slow]

STALE_S = 0.3
"""What an API server knows of the others' requests is not older."""
TWO_PROFILES = {0: [(0.0, 200.0)], 1: [(0.0, 100.0), (1.0, 500.0), (2.0, 100.0)]}


class TestTensorParallel:
    """Two workers, two GPUs with power of their own."""

    @pytest.fixture(scope="class")
    @staticmethod
    def metered(start_server: StartServer) -> Iterator[Metered]:
        with start_server("-tp", "2", power=TWO_PROFILES, cycle_s=2.0) as metered:
            yield metered

    def test_each_gpu_keeps_its_own_book(self, metered: Metered) -> None:
        """Each sum is its own counter's, and requests get their share of both.

        Modelled exchanges are a part of each, and not in the sums.
        """
        records = complete_together(metered, 4, "tensor parallel", 120)
        time.sleep(0.3)
        books = [assert_balanced(metered, gpu) for gpu in (0, 1)]
        charged = sum(
            book[account] for book in books for account in ("prefill", "decode", "recompute")
        )
        assert charged == pytest.approx(sum(r["energy_joules"] for r in records), rel=1e-9)
        assert books[0] != books[1]
        for gpu, book in enumerate(books):
            uuid = uuid_of(gpu)
            part = metered.metric("llm_carbon_meter_allreduce_modelled_joules_total", gpu=uuid)
            assert 0 < part < 0.01 * sum(book.values())


class TestTwoApiServers:
    """Either server answers, both know every record, one exports the engine's totals."""

    @pytest.fixture(scope="class")
    @staticmethod
    def metered(start_server: StartServer) -> Iterator[Metered]:
        with start_server("--api-server-count", "2", *MIDDLEWARE, program=VLLM_SERVE) as metered:
            yield metered

    def test_every_server_finds_every_record(self, metered: Metered) -> None:
        """New connections reach either server; the record is the same."""
        ids = []
        for _ in range(6):
            body = {"model": MODEL_NAME, "prompt": "x", "max_tokens": 8, "ignore_eos": True}
            _, headers, answer = metered.http("/v1/completions", body)
            assert float(headers["llm-carbon-measured-wh"]) > 0
            ids.append(json.loads(answer)["id"])
        for request_id in ids:
            final = metered.record(request_id)
            time.sleep(0.2)
            for _ in range(8):
                status, _, body = metered.http(f"/v1/carbon/requests/{request_id}")
                assert (status, json.loads(body)) == (200, final)

    def test_either_server_counts_the_requests_of_both(self, metered: Metered) -> None:
        """Connections reach either one; soon after the others are answered they count no more."""
        assert company(metered, beside=8) == [9] * 6
        assert company(metered, beside=0) == [1] * 6

    def test_totals_are_counted_once(self, metered: Metered) -> None:
        """The accounts of the multi-process scrape are the counter's, not twice."""
        complete_together(metered, 4, "count me once", 30)
        time.sleep(0.5)
        assert_balanced(metered)
        assert metered.metric("llm_carbon_meter_requests_total") == len(metered.logged())


class TestDataParallel:
    """Two engines, each with a GPU and totals of its own."""

    @pytest.fixture(scope="class")
    @staticmethod
    def metered(start_server: StartServer) -> Iterator[Metered]:
        with start_server(
            "--data-parallel-size", "2", power=TWO_PROFILES, cycle_s=2.0, program=VLLM_SERVE
        ) as metered:
            yield metered

    def test_each_engine_reads_its_own_gpu(self, metered: Metered) -> None:
        """The label `engine` and the GPU go together."""
        records = complete_together(metered, 6, "data parallel", 60)
        assert {record["engine"] for record in records} == {0, 1}
        for gpu in (0, 1):
            uuid = uuid_of(gpu)
            assert sum(metered.accounts(engine=str(gpu), gpu=uuid).values()) > 0
            assert not metered.accounts(engine=str(1 - gpu), gpu=uuid)
            assert_balanced(metered, gpu)

    def test_engines_share_requests_evenly(self, metered: Metered) -> None:
        """Seven of two API servers are three on one engine: an eighth is the fourth there."""
        assert company(metered, beside=7) == [4] * 6


@contextlib.contextmanager
def running(metered: Metered, count: int) -> Iterator[None]:
    """Long requests that run inside the ``with`` block, and are left at its end."""
    body = {"model": MODEL_NAME, "prompt": "on", "max_tokens": 1000, "ignore_eos": True}
    request = {"url": metered.url + "/v1/completions", "json": body | {"stream": True}}
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(httpx.stream("POST", **request, timeout=30)).iter_lines()
            for _ in range(count)
        ]
        names = [json.loads(next(stream).removeprefix("data: "))["id"] for stream in streams]
        time.sleep(STALE_S)
        yield
    for name in names:
        metered.record(name)


def company(metered: Metered, beside: int) -> list[int]:
    """The concurrency of six short requests, one after the other, beside some long ones."""
    body = {"model": MODEL_NAME, "prompt": "who is there", "max_tokens": 2, "ignore_eos": True}
    names = []
    with running(metered, beside):
        for _ in range(6):
            names.append(json.loads(metered.http("/v1/completions", body)[2])["id"])
            time.sleep(STALE_S)
    return [metered.record(name)["features"]["concurrency"] for name in names]


def test_a_killed_engine_leaves_nothing_behind(start_server: StartServer) -> None:
    """The server ends as it would without us; what was final is in the log; no thread lingers."""
    with start_server() as metered:
        complete(metered, "before the end", 10)
        children = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(metered.server.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        engine = next(line for line in children.splitlines() if "EngineCore" in line)
        os.kill(int(engine.split()[0]), signal.SIGKILL)
        eventually(lambda: metered.server.process.poll() is not None, "the server's end", 60)
        assert len(metered.logged()) == 1


def _end_of_a_killed_worker(
    start_server: StartServer, environment: dict[str, str]
) -> tuple[int, list[str]]:
    """Exit code of a server of which one of two workers was killed, and what it left running."""
    with start_server("-tp", "2", power=TWO_PROFILES, environment=environment) as metered:
        body = {"model": MODEL_NAME, "prompt": "x", "max_tokens": 5, "ignore_eos": True}
        assert metered.http("/v1/completions", body)[0] == 200
        server = psutil.Process(metered.server.process.pid)
        family = server.children(recursive=True)
        worker = next(child for child in family if "Worker" in " ".join(child.cmdline()))
        worker.kill()
        eventually(lambda: metered.server.process.poll() is not None, "its end", 90)
        code = metered.server.process.poll()
        assert code is not None
        left = psutil.wait_procs(family, timeout=20)[1]
        return code, [" ".join(process.cmdline()) for process in left]


def test_a_killed_worker_ends_the_server_as_without_us(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The same exit code, nothing left running, and no socket in the way of the next start."""
    channel = {"LLM_CARBON_METER_CHANNEL_DIR": str(tmp_path / "channel")}
    without = _end_of_a_killed_worker(start_server, {"LLM_CARBON_METER_ENABLED": "0"})
    assert _end_of_a_killed_worker(start_server, channel) == without
    assert without[1] == []
    with start_server(environment=channel) as again:
        assert complete(again, "after the end", 5)["quality"] == "counter"


def test_sigterm_settles_the_last_tick(start_server: StartServer, tmp_path: Path) -> None:
    """Where vLLM gives its engine time to drain, the request that still ran is in the log, and
    what steps cost is kept for the next start."""
    coefficients = tmp_path / "prices.json"
    kept = {"LLM_CARBON_METER_PRICES_FILE": str(coefficients)}
    with start_server("--shutdown-timeout", "20", environment=kept) as metered:
        body = {"model": MODEL_NAME, "prompt": "x", "max_tokens": 1000, "ignore_eos": True}
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_ignore_errors, metered, body)
            time.sleep(1.0)
            metered.server.process.terminate()
            eventually(lambda: metered.server.process.poll() is not None, "the server's end", 60)
        (record,) = metered.logged()
        assert record["status"] == "final"
        assert record["energy_joules"] > 0
    assert np.any(json.loads(coefficients.read_text("utf-8"))["prices"]["watts"]["products"])
    with start_server(environment=kept) as again:
        assert complete(again, "on with the same coefficients", 5)["quality"] == "counter"
        assert not again.metric("llm_carbon_meter_errors_total")


def _ignore_errors(metered: Metered, body: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        metered.http("/v1/completions", body)
