"""Real servers in other configurations: what a step can be, and what can go wrong."""

import dataclasses
import json
from collections.abc import Iterator
from statistics import fmean
from time import monotonic

import pytest

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.support.servers.completions import complete, complete_together
from tests.support.servers.metered import MIDDLEWARE, Metered, StartServer, assert_balanced
from tests.support.waiting import eventually

pytestmark = pytest.mark.engine


class TestPreemption:
    """A cache too small for three requests: one is preempted and prefilled again."""

    @pytest.fixture(scope="class")
    @staticmethod
    def metered(start_server: StartServer) -> Iterator[Metered]:
        cramped = (
            *("--num-gpu-blocks-override", "9", "--max-model-len", "160"),
            *("--max-num-batched-tokens", "32", "--no-enable-prefix-caching"),
        )
        with start_server(*cramped) as metered:
            yield metered

    def test_repeated_work_belongs_to_the_request_that_was_preempted(
        self, metered: Metered
    ) -> None:
        """Its joules stand in an account of their own, and the balance closes."""
        records = complete_together(metered, 3, list(range(5, 35)), 90)
        assert all(record["output_tokens"] == 90 for record in records)
        assert sum(record["recompute_joules"] for record in records) > 0
        assert metered.metric("llm_carbon_meter_tokens_total", phase="prefill") == 90
        accounts = assert_balanced(metered)
        assert accounts["recompute"] == pytest.approx(
            sum(record["recompute_joules"] for record in records), rel=1e-9
        )


class TestSpeculation:
    """n-gram drafts: every verified position is work of its request."""

    @pytest.fixture(scope="class")
    @staticmethod
    def metered(start_server: StartServer) -> Iterator[Metered]:
        lookup = {"prompt_lookup_min": 1, "prompt_lookup_max": 1}
        drafts = {"method": "ngram", "num_speculative_tokens": 3, **lookup}
        with start_server("--speculative-config", json.dumps(drafts)) as metered:
            yield metered

    def test_drafts_are_decode_work(self, metered: Metered) -> None:
        """Decode computes at least as many tokens as come out, in one phase."""

        def computed(phase: str) -> float:
            return metered.metric("llm_carbon_meter_tokens_total", phase=phase)

        before = {phase: computed(phase) for phase in ("prefill", "decode")}
        record = complete(metered, [7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8], 60)
        assert record["output_tokens"] == 60
        assert record["recompute_joules"] == 0
        assert record["decode_joules"] > 0
        assert computed("prefill") - before["prefill"] == 11
        assert computed("decode") - before["decode"] >= 59
        assert_balanced(metered)

    def test_estimates_know_the_drafts_of_those_before(self, metered: Metered) -> None:
        """An answer that repeats itself takes half the steps; after some the next is known to."""
        prompts = [[number, 8, 9] * 4 for number in range(20, 32)]
        records = [complete(metered, prompt, 60, temperature=0) for prompt in prompts]
        for record in records:
            served = record["features"]
            assert served["decode_steps"] < 59 <= served["decode_tokens"]
            assert record["conditional"]["decode_joules"] < records[0]["estimate"]["decode_joules"]
        expected = [record["estimate"]["decode_joules"] for record in records]
        known = fmean(record["conditional"]["decode_joules"] for record in records)
        assert expected[-1] == pytest.approx(known, rel=0.3)
        assert expected[-1] < 0.8 * expected[0]


@pytest.mark.slow
class TestPooling:
    """An embedding model has no decode at all."""

    @pytest.fixture(scope="class")
    @staticmethod
    def metered(start_server: StartServer) -> Iterator[Metered]:
        with start_server("--runner", "pooling") as metered:
            yield metered

    def test_embeddings_are_metered_as_prefill(self, metered: Metered) -> None:
        """One record per exchange, all its joules in prefill."""
        body = {"model": MODEL_NAME, "input": ["first text", "second text"]}
        status, _, answer = metered.http("/v1/embeddings", body)
        assert status == 200
        record = metered.record(json.loads(answer)["id"])
        assert len(metered.logged()) == 1
        assert len(record["internal_ids"]) == 2
        assert record["prefill_joules"] == pytest.approx(record["energy_joules"])
        assert record["energy_joules"] > 0
        assert record["outcome"] == "finished"
        estimated = record["estimate"]
        assert (estimated["decode_joules"], estimated["output_tokens"]) == (0, 0)
        assert estimated["prefill_joules"] > 0
        assert_balanced(metered)


class TestFaults:
    """The counter jumps back, a GPU falls off and comes again: serving never pauses."""

    @pytest.fixture(scope="class")
    @staticmethod
    def metered(start_server: StartServer) -> Iterator[Metered]:
        with start_server(
            extra=("slow_ms 0 0 1000 1",),
            environment={
                "LLM_CARBON_METER_PUE": "0.5",
                "LLM_CARBON_METER_NO_SUCH_SETTING": "1",
            },
        ) as metered:
            yield metered

    def test_faults_are_labelled_and_no_joule_is_invented(self, metered: Metered) -> None:
        """After a reset and a loss the accounts still add up to the counter's increments."""
        assert complete(metered, "before", 30)["quality"] == "counter"
        script, path = metered.script, metered.log.parent / "script"
        now_s = monotonic() - script.origin_s
        faults = (f"reset 0 {now_s + 0.5}", f"lost 0 {now_s + 1.0} {now_s + 1.5}")
        dataclasses.replace(script, extra=(*script.extra, *faults)).write(path)
        record = complete(metered, "meanwhile", 1000)
        assert record["output_tokens"] == 1000
        assert record["quality"] == "reset"
        eventually(
            lambda: metered.metric("llm_carbon_meter_errors_total", where="sampler"),
            "the sampler's errors",
        )
        assert metered.metric("llm_carbon_meter_accounted_ratio") == pytest.approx(1, abs=1e-9)
        assert complete(metered, "afterwards", 30)["quality"] == "counter"

    def test_wrong_settings_are_counted_and_keep_their_defaults(self, metered: Metered) -> None:
        """Each is named once in the log."""
        assert metered.metric("llm_carbon_meter_errors_total", where="settings") >= 1
        log = metered.server.log.read_text()
        assert "LLM_CARBON_METER_PUE='0.5'" in log
        assert complete(metered, "x", 2)["pue"] == 1.0


def test_without_flags_or_sensor_the_server_still_exports_metrics(
    start_server: StartServer,
) -> None:
    """Power is modelled and says so; responses are as they were."""
    without = {"LLM_CARBON_METER_POWER": "auto", "NVML_STUB_SCRIPT": "/nowhere"}
    with start_server(environment=without) as metered:
        body = {"model": MODEL_NAME, "prompt": "x", "max_tokens": 5, "ignore_eos": True}
        _, headers, answer = metered.http("/v1/completions", body)
        assert not any("carbon" in name.lower() for name in headers)
        record = metered.record(json.loads(answer)["id"])
        assert record["source"] == record["quality"] == "modelled"
        joules = metered.accounts(source="modelled")
        assert sum(joules.values()) > 0
        assert joules["unattributed"] == 0
        assert not metered.accounts(source="measured")
        assert metered.metric("llm_carbon_meter_errors_total", where="power") == 1


@pytest.mark.slow
def test_a_gpu_at_a_lower_limit_is_told_in_every_record(start_server: StartServer) -> None:
    """NVML's name and limit are the deployment's, estimates keep to both, nothing is assumed."""
    lines = ("name NVIDIA B300 SXM6 AC", "limit 0 700")
    with start_server(extra=lines) as metered:
        record = complete(metered, "x", 5)
        assert record["deployment"]["gpu"] == "NVIDIA B300 SXM6 AC"
        assert record["deployment"]["power_limit_watts"] == 700
        assert "GPU B300 at 700 W not measured" in record["estimate"]["out_of_domain"]
        assert "assumed" not in record["estimate"]["out_of_domain"]
        assert record["quality"] == "counter"
        assert_balanced(metered)


@pytest.mark.slow
def test_a_known_gpu_without_a_sensor_is_modelled_by_its_own_sheet(
    start_server: StartServer,
) -> None:
    """A T4 draws between 7 and 70 W, not what an H100 does."""
    sensors = ("energy", "instant", "average", "usage")
    lines = ("name Tesla T4", *(f"unsupported 0 {sensor}" for sensor in sensors))
    with start_server(environment={"LLM_CARBON_METER_POWER": "auto"}, extra=lines) as metered:
        record = complete(metered, "x", 20)
        assert record["source"] == record["quality"] == "modelled"
        assert record["deployment"]["gpu"] == "Tesla T4"
        assert "assumed" not in record["estimate"]["out_of_domain"]
        watts = metered.metric("llm_carbon_meter_gpu_power_watts", source="modelled")
        assert 7.0 <= watts <= 70.0
        assert "data sheet of T4" in metered.server.log.read_text()


def test_a_wrong_setting_stops_a_strict_start(start_server: StartServer) -> None:
    """The error names the setting, its value and what is expected."""
    strict = {"LLM_CARBON_METER_STRICT": "1", "LLM_CARBON_METER_POLICY": "fair"}
    expected = pytest.raises(MeterError, match=r"LLM_CARBON_METER_POLICY='fair'.*shapley")
    with expected, start_server(environment=strict):
        pass


@pytest.mark.slow
def test_switched_off_it_leaves_no_trace(start_server: StartServer) -> None:
    """No metric, no route, no thread."""
    with start_server(environment={"LLM_CARBON_METER_ENABLED": "0"}) as metered:
        assert not any(s.name.startswith("llm_carbon_meter") for s in metered.samples())
        assert metered.http("/v1/carbon/requests/x")[0] == 404


@pytest.mark.slow
def test_without_a_channel_serving_goes_on(start_server: StartServer) -> None:
    """A directory that cannot be made is named in the log, with what to do, and counted."""
    nowhere = {"LLM_CARBON_METER_CHANNEL_DIR": "/proc/no-such-place"}
    with start_server(*MIDDLEWARE, environment=nowhere) as metered:
        body = {"model": MODEL_NAME, "prompt": "x", "max_tokens": 5, "ignore_eos": True}
        status, headers, answer = metered.http("/v1/completions", body)
        assert status == 200
        assert json.loads(answer)["usage"]["completion_tokens"] == 5
        # The estimate needs no channel; no figure is made up for what was not heard.
        assert float(headers["llm-carbon-estimated-wh"]) > 0
        assert "llm-carbon-measured-wh" not in headers
        assert metered.metric("llm_carbon_meter_errors_total", where="start") == 1
        log = metered.server.log.read_text()
        assert "set LLM_CARBON_METER_CHANNEL_DIR to another directory" in log
