"""The FLOP formula of the LLM-BENCH note, to the digit."""

from dataclasses import asdict, dataclass, replace
from math import hypot, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.data.azure_trace import conversation_quantiles
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_list import built_in_config, built_in_model
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.physics.phases import PLAIN, Serving
from llm_carbon_meter.predictor.energy_model import Deployment, EnergyModel, Numbers, PhaseEnergy
from llm_carbon_meter.predictor.estimator import DeploymentEstimator
from llm_carbon_meter.predictor.flop import NOTE_CONSTANTS, FlopConstants, FlopModel, note_flop
from llm_carbon_meter.predictor.gnn import GnnModel
from llm_carbon_meter.predictor.lengths import LengthForecast, OutputLengths, exact_length
from llm_carbon_meter.predictor.models import ENERGY_MODELS, energy_model
from llm_carbon_meter.records import CarbonIntensity, EstimateQuery, MeterError
from llm_carbon_meter.units import watt_hours

LLAMA = built_in_model("Llama-3.1-8B")
GRID = CarbonIntensity(400.0, "DE", "static")
H100 = Deployment(LLAMA, gpu_spec("H100"), 1)


def flop(constants: FlopConstants = NOTE_CONSTANTS) -> DeploymentEstimator:
    """The formula on a deployment."""
    return DeploymentEstimator(FlopModel(constants), H100, GRID)


FLOP = flop()


@pytest.mark.parametrize(
    ("prompt", "output", "prefill", "decode"),
    [(1000, 500, 16584810496000, 8357810176000), (1020, 129, 16927202181120, 2145121738752)],
)
def test_operations_of_the_reference(prompt: int, output: int, prefill: int, decode: int) -> None:
    """FLOPs of both phases for Llama-3.1-8B."""
    assert note_flop(LLAMA, prompt, output) == (prefill, decode)


@pytest.mark.parametrize(
    ("prompt", "output", "prefill_wh", "decode_wh", "total_wh"),
    [
        (1000, 500, 0.0138206754, 0.0348242091, 0.0486448845),
        (1020, 129, 0.0141060018, 0.0089380072, 0.0230440091),
    ],
)
def test_energy_of_the_reference(
    prompt: int, output: int, prefill_wh: float, decode_wh: float, total_wh: float
) -> None:
    """Wh of both phases to ten digits."""
    estimate = FLOP.estimate(EstimateQuery(prompt, output), exact_length(output))
    assert watt_hours(estimate.prefill_joules) == pytest.approx(prefill_wh, abs=5e-11)
    assert watt_hours(estimate.decode_joules) == pytest.approx(decode_wh, abs=5e-11)
    assert watt_hours(estimate.joules) == pytest.approx(total_wh, abs=5e-11)


def test_experts_count_as_active_parameters() -> None:
    """Mixtral is charged two experts of eight."""
    mixtral = built_in_model("Mixtral-8x7B")
    counted = note_flop(mixtral, 1, 1)
    assert counted.prefill == 2 * mixtral.active_parameters + 4 * 128 * 32 * 32
    assert counted.prefill == counted.decode


def test_a_facility_figure_has_no_pue_on_top() -> None:
    """1500 W contain the data centre: grams are joules times intensity, once."""
    estimate = FLOP.estimate(EstimateQuery(1000, 500), exact_length(500))
    assert estimate.facility
    assert estimate.operational_grams == pytest.approx(estimate.joules / 3.6e6 * 400)


@given(
    prompt=st.integers(1, 100_000),
    max_tokens=st.none() | st.integers(1, 100) | st.integers(100, 5000),
    served=st.lists(st.integers(1, 4000), max_size=40),
)
def test_the_interval_holds_the_estimate(
    prompt: int, max_tokens: int | None, served: list[int]
) -> None:
    """Low <= estimate <= high, whatever was served and wherever it is cut."""
    lengths = OutputLengths(conversation_quantiles().output_tokens)
    for output in served:
        lengths.observe(output)
    query = EstimateQuery(prompt, max_tokens)
    estimate = FLOP.estimate(query, lengths.forecast(max_tokens))
    slack = 1e-12 * estimate.joules
    assert 0 < estimate.low_joules <= estimate.joules + slack
    assert estimate.joules <= estimate.high_joules + slack
    assert max_tokens is None or estimate.output_tokens <= max_tokens


def test_a_known_length_has_no_interval() -> None:
    """Low and high meet where the output is known."""
    estimate = FLOP.estimate(EstimateQuery(10, None, output_tokens=7), exact_length(7))
    assert estimate.low_joules == estimate.high_joules == pytest.approx(estimate.joules)
    assert estimate.output_tokens == 7


@given(prompt=st.integers(1, 5000), output=st.integers(1, 3000), n=st.integers(1, 16))
def test_n_sequences_cost_n_times(prompt: int, output: int, n: int) -> None:
    """Each of n answers is charged its own prefill and decode."""
    query = EstimateQuery(prompt, None)
    one = FLOP.estimate(query, exact_length(output))
    many = FLOP.estimate(replace(query, num_sequences=n), exact_length(output))
    for name in ("prefill_joules", "decode_joules", "low_joules", "operational_grams"):
        assert getattr(many, name) == pytest.approx(n * getattr(one, name))
    assert many.output_tokens == n * one.output_tokens


def test_concurrency_is_no_input_of_the_formula() -> None:
    """Decode at 10 % utilisation assumes a batch already."""
    alone = FLOP.estimate(EstimateQuery(100, 50), exact_length(50))
    crowded = FLOP.estimate(EstimateQuery(100, 50, concurrency=32), exact_length(50))
    assert alone == crowded


@pytest.mark.parametrize(
    "query",
    [
        EstimateQuery(0, 10),
        EstimateQuery(-5, 10),
        EstimateQuery(10, 10, num_sequences=0),
        EstimateQuery(10, 10, concurrency=0),
    ],
)
def test_senseless_queries_are_refused(query: EstimateQuery) -> None:
    """No prompt or no sequence is an error that says so."""
    with pytest.raises(MeterError, match="must be at least 1"):
        FLOP.estimate(query, exact_length(10))


def test_constants_are_configurable() -> None:
    """Twice the joules per FLOP are twice the joules; utilisation acts on its own phase."""
    query, length = EstimateQuery(100, 50), exact_length(50)
    note = FLOP.estimate(query, length)
    dear = flop(FlopConstants(joules_per_flop=3e-12)).estimate(query, length)
    assert dear.joules == pytest.approx(2 * note.joules)
    busy = flop(FlopConstants(decode_utilisation=0.2)).estimate(query, length)
    assert busy.prefill_joules == note.prefill_joules
    assert busy.decode_joules == pytest.approx(note.decode_joules / 2)


def test_models_are_there_by_their_names() -> None:
    """Settings and the command line ask for `flop`, and estimates carry the name."""
    for name in ENERGY_MODELS:
        assert energy_model(name).name == name
    assert FLOP.estimate(EstimateQuery(1, 1), exact_length(1)).method == "flop"
    with pytest.raises(MeterError, match=r"'oracle'; known: .*flop"):
        energy_model("oracle")


@dataclass(frozen=True)
class LinearModel:
    """A joule a prompt token, ten an output token, shared by all; uncertain by a factor."""

    width: float = 0.0
    out_of_domain: str = ""
    name: str = "linear"
    facility: bool = False
    measured: bool = True

    def bind(self, deployment: Deployment) -> "LinearModel":
        return self

    def phases(
        self,
        concurrency: Numbers,
        prompt_tokens: Numbers,
        output_tokens: Numbers,
        serving: Serving = PLAIN,
    ) -> PhaseEnergy:
        assert min(concurrency, prompt_tokens) >= 1
        joules = prompt_tokens / concurrency, 10 * output_tokens / concurrency
        return PhaseEnergy(*joules, width=self.width)


def test_both_uncertainties_add_in_quadrature() -> None:
    """Length alone, model alone, and both: their logarithms are the sides of a triangle."""
    query = EstimateQuery(10, None)
    spread, known = LengthForecast(100.0, 50.0, 400.0), exact_length(100)

    def logs(uncertainty: float, lengths: LengthForecast) -> tuple[float, float]:
        model = LinearModel(log(uncertainty))
        estimator = DeploymentEstimator(model, H100, GRID)
        found = estimator.estimate(query, lengths)
        return log(found.joules / found.low_joules), log(found.high_joules / found.joules)

    assert logs(1.0, spread) == pytest.approx((log(1010 / 510), log(4010 / 1010)))
    assert logs(1.3, known) == pytest.approx((log(1.3), log(1.3)))
    assert logs(1.3, spread) == pytest.approx(
        (hypot(log(1010 / 510), log(1.3)), hypot(log(4010 / 1010), log(1.3)))
    )


def test_company_and_overhead_count_where_the_model_says_so() -> None:
    """Concurrency reaches the model, as a mean too; PUE is on figures without it alone."""
    site = DeploymentEstimator(LinearModel(), H100, GRID, pue=1.5)
    alone = site.estimate(EstimateQuery(10, None), exact_length(4))
    assert alone.operational_grams == pytest.approx(50 / 3.6e6 * 1.5 * 400)
    shared = site.estimate(EstimateQuery(10, None, concurrency=2.5), exact_length(4))
    assert shared.joules == pytest.approx(alone.joules / 2.5)
    facility = DeploymentEstimator(FlopModel(), H100, GRID, pue=1.5)
    assert facility.estimate(EstimateQuery(10, None), exact_length(4)).operational_grams == (
        FLOP.estimate(EstimateQuery(10, None), exact_length(4)).operational_grams
    )


def test_an_embedding_is_a_prefill() -> None:
    """Without an answer there is no decode, and the interval is that of the prefill."""
    estimate = DeploymentEstimator(LinearModel(log(1.2)), H100, GRID).estimate(
        EstimateQuery(10, 0), exact_length(0)
    )
    assert (estimate.prefill_joules, estimate.decode_joules) == (10.0, 0.0)
    assert estimate.high_joules == pytest.approx(12.0)
    assert estimate.output_tokens == 0


def test_an_estimate_says_what_it_was_not_made_for() -> None:
    """The model's own reason and the deployment's, both."""
    model = LinearModel(out_of_domain="no such GPU was learnt")
    estimator = DeploymentEstimator(model, H100, GRID, remark="H100 is assumed")
    estimate = estimator.estimate(EstimateQuery(1, 1), exact_length(1))
    assert estimate.out_of_domain == "H100 is assumed; no such GPU was learnt"
    assert FLOP.estimate(EstimateQuery(1, 1), exact_length(1)).out_of_domain == ""
    unknown = model_spec({**built_in_config("Llama-3.1-8B"), "model_type": "new"}, approximate=True)
    approximate = DeploymentEstimator(FlopModel(), replace(H100, model=unknown), GRID)
    assert (
        "counted as llama"
        in approximate.estimate(EstimateQuery(1, 1), exact_length(1)).out_of_domain
    )


def test_calibration_scales_everything_that_clients_are_told() -> None:
    """The raw figures stay beside the factor."""
    raw = replace(FLOP.estimate(EstimateQuery(10, None), LengthForecast(5, 2, 9)), calibration=1.5)
    told = raw.calibrated
    for name in ("joules", "prefill_joules", "low_joules", "high_joules", "operational_grams"):
        assert getattr(told, name) == pytest.approx(1.5 * getattr(raw, name))
    assert told.output_tokens == raw.output_tokens
    assert told.calibrated is told


MANY = [
    EstimateQuery(100 + n, None, 1 + n % 2, 1.0 + n, cached_tokens=10.0 * (n % 3))
    for n in range(10)
]
SPREAD = [LengthForecast(5.0 * number, 2.0 * number, 9.0 * number) for number in range(10)]


@pytest.mark.parametrize("model", [FlopModel(), GnnModel()])
@pytest.mark.parametrize("count", [0, 1, 10])
def test_many_are_estimated_as_each_alone(model: EnergyModel, count: int) -> None:
    """To the last digits, whatever is asked; an answer of no token among them."""
    place = Deployment(built_in_model("Qwen3-30B-A3B"), gpu_spec("H100"), 1, "vllm", "0.11.1")
    estimator = DeploymentEstimator(model, place, GRID)
    together = estimator.estimate_all(MANY[:count], SPREAD[:count])
    alone = list(map(estimator.estimate, MANY[:count], SPREAD[:count]))
    assert len(together) == count
    for one, other in zip(together, alone, strict=True):
        figures = [
            {name: value for name, value in asdict(made).items() if isinstance(value, float)}
            for made in (one, other)
        ]
        assert figures[0] == pytest.approx(figures[1], rel=1e-9)
        assert one.out_of_domain == other.out_of_domain


def test_what_is_cached_is_read_and_not_computed() -> None:
    """More of it is cheaper, all but the last token can be, and what is impossible is refused."""
    place = Deployment(built_in_model("Llama-3.1-8B"), gpu_spec("H100"), 1, "vllm", "0.11.1")
    estimator = DeploymentEstimator(GnnModel(), place, GRID)
    query = EstimateQuery(4000, None)
    joules = [
        estimator.estimate(replace(query, cached_tokens=cached), exact_length(1)).joules
        for cached in (0.0, 1000.0, 3000.0, 3999.0)
    ]
    assert joules == sorted(joules, reverse=True)
    assert joules[-1] < 0.2 * joules[0]
    for cached in (4000.0, -1.0):
        with pytest.raises(MeterError, match="4000 prompt tokens"):
            estimator.estimate(replace(query, cached_tokens=cached), exact_length(1))
