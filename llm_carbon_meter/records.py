"""READ FIRST: the frozen records that flow through the meter, from a counter tick to /metrics.

    EnergyReading, StepEvent -> ledger -> RequestEnergy, EngineTotals -> channel
        -> RequestRecord -> exporters

Joules, watts, seconds of the monotonic clock. Nobody changes a record after it was made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

METHOD: Final = 1
"""Version of the rules by which joules are divided, and of what they are of: receipts carry it. It
rises with every change of these that the changelog calls breaking."""


class MeterError(Exception):
    """What was tried, what was found, and what to do."""


class ConfigError(MeterError):
    """A setting has a value that cannot be used."""


class PowerError(MeterError):
    """A power source cannot be opened or read."""


class SpecError(MeterError):
    """A model or GPU is not known, or its description contradicts itself."""


class Account(IntEnum):
    """Where joules are booked; every joule of a counter is in exactly one account.

    The first four are charged to requests. The numbers are column indices in the ledger.
    """

    PREFILL = 0
    DECODE = 1
    RECOMPUTE = 2
    """Work repeated after a preemption."""
    WASTE = 3
    """A step whose result the engine dropped (stop token under async scheduling, abort)."""
    OVERHEAD = 4
    """Dummy batches, start-up, sleep and wake-up: no request."""
    IDLE = 5
    UNATTRIBUTED = 6
    """What the meter truly could not place, for example over a gap in the readings."""

    @property
    def label(self) -> str:
        """The value of the metric label ``account``."""
        return self.name.lower()


REQUEST_ACCOUNTS = (Account.PREFILL, Account.DECODE, Account.RECOMPUTE, Account.WASTE)


class Source(StrEnum):
    """Where a number comes from; numbers of different sources are never added."""

    MEASURED = "measured"
    MODELLED = "modelled"
    ESTIMATED = "estimated"


class Quality(StrEnum):
    """How far to trust a figure, best first; a request gets the worst that it met."""

    COUNTER = "counter"
    POWER = "power"
    CONTENDED = "contended"
    MODULE_SCOPE = "module_scope"
    PACKAGE = "package"
    """The host's CPU packages and memory: whatever else runs on the host is in it."""
    MIG_PARENT = "mig_parent"
    RESET = "reset"
    """A counter jumped back or a GPU stopped answering: some of its joules are missing."""
    IMPOSSIBLE = "impossible"
    """A counter rose by more than the GPU can draw: these joules are unattributed."""
    OUTSIDE = "outside"
    """Metered by a proxy before a server that is not hooked: no step of it was seen."""
    MODELLED = "modelled"

    @property
    def rank(self) -> int:
        """0 for the best."""
        return list(Quality).index(self)

    @property
    def misses_joules(self) -> bool:
        """Whether what was drawn is not known, so that requests lack some of it."""
        return self in (Quality.RESET, Quality.IMPOSSIBLE)


class TokenCount(StrEnum):
    """Who counted a request's tokens."""

    ENGINE = "engine"
    USAGE = "usage"
    """The ``usage`` of the server's answer."""
    GUESSED = "guessed"
    """There was none: four characters a token, and one for each chunk of a stream."""


class Status(StrEnum):
    """Whether the last counter tick of a request is in the figure."""

    PROVISIONAL = "provisional"
    FINAL = "final"


class Outcome(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """A stop string: the frontend found it and aborted the engine's request."""
    ABORTED = "aborted"
    FAILED = "failed"


class Whose(NamedTuple):
    """Who asked for a request, and by which adapter it was answered."""

    tenant: str | None = None
    """None where nothing says so."""
    adapter: str = ""
    """Of LoRA; empty for the model itself."""


NOBODYS: Final = Whose()
"""What nobody says anything of."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Money for a request, or for an account."""

    energy: float | None
    """Of the electricity, overhead of the site included; None where no price is known."""
    gpu: float | None
    """Of the GPUs' time, likewise; prices of GPUs often have the electricity in them."""
    currency: str

    @property
    def by_kind(self) -> Mapping[str, float]:
        """What is known of both."""
        kinds = {"energy": self.energy, "gpu": self.gpu}
        return {kind: money for kind, money in kinds.items() if money is not None}


class EventBatch(NamedTuple):
    """What a serving engine reported since it was last asked, in order."""

    steps: list["StepEvent"]
    ends: list["RequestEnd"]
    """Every step of these requests is in this batch or an earlier one."""
    known_until_s: float
    """No step that starts before this is still to come."""
    more: bool
    """Asked for too little: the rest waits."""
    load: Mapping[int, int] = MappingProxyType({})
    """Requests that the engine holds, by the API server that sent them."""


class StepKind(IntEnum):
    """What occupied the GPUs."""

    SERVING = 0
    OVERHEAD = 1


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """One GPU's energy counter, as read."""

    monotonic_s: float
    gpu: str
    """UUID, or ``modelled-0`` … where there is no sensor."""
    joules: float
    """Cumulative; only differences mean anything."""
    watts: float | None = None
    """Power at that moment, for display only."""
    quality: Quality = Quality.COUNTER
    """How far to trust the joules since the reading before, where that is worse than usual."""
    lag_s: float = 0.0
    """How late the joules are thought to show: already taken off ``monotonic_s``."""


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One engine step: when it was on the GPUs, and its requests as parallel columns.

    Under async scheduling steps are dispatched before the last one is done: the ledger places
    step N at [max(dispatched_N, done_N-1), done_N].
    """

    step_id: int
    dispatched_s: float
    done_s: float
    request_ids: Sequence[str] = ()
    accounts: Sequence[int] = ()
    """PREFILL, DECODE, RECOMPUTE or WASTE per request."""
    num_scheduled_tokens: Sequence[int] = ()
    num_computed_tokens: Sequence[int] = ()
    """Tokens already in the KV cache before the step."""
    num_sampled: Sequence[int] = ()
    """Positions whose logits the step computes: 0 in early prefill chunks, drafts included."""
    kind: StepKind = StepKind.SERVING


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """The engine's last word about a request."""

    request_id: str
    outcome: Outcome
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    monotonic_s: float
    whole: bool = True
    """False where its first step was not seen: what it used is known in part."""


@dataclass(frozen=True, slots=True)
class AccountJoules:
    """Joules of a request by account: the only place that lists a request's accounts."""

    prefill: float = 0.0
    decode: float = 0.0
    recompute: float = 0.0
    waste: float = 0.0
    idle: float = 0.0
    """0 unless idle is spread over requests (``idle="by_time"``)."""

    @property
    def total(self) -> float:
        """All accounts together."""
        return self.prefill + self.decode + self.recompute + self.waste + self.idle

    @property
    def busy(self) -> float:
        """Without idle joules, which are in no estimate."""
        return self.total - self.idle

    @property
    def by_name(self) -> Mapping[str, float]:
        """Every account under its name."""
        return {name: getattr(self, name) for name in ACCOUNT_NAMES}

    def __add__(self, other: "AccountJoules") -> "AccountJoules":
        return AccountJoules(
            *(getattr(self, name) + getattr(other, name) for name in ACCOUNT_NAMES)
        )


ACCOUNT_NAMES: Final = tuple(field.name for field in fields(AccountJoules))
"""Of a request's accounts, as records and tables have them."""


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """What one engine request used: its fair share of every step that it was in."""

    request_id: str
    engine: int
    """Index of the engine (data parallel rank)."""
    status: Status
    source: Source
    quality: Quality
    outcome: Outcome
    accounts: AccountJoules
    operational_grams: float
    """gCO2eq: joules / 3.6e6 x PUE x intensity (Eq 1 of the LLMCO2 paper)."""
    gpu_seconds: float
    """The request's share of the time of every GPU, divided as the joules are."""
    embodied_grams: float | None
    """gCO2eq of the hardware's making in that time; None where the settings leave it out."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    num_steps: int
    mean_running: float
    """Requests in its steps, averaged: the batch it shared."""
    first_step_s: float
    last_step_s: float
    decode_steps: int = 0
    """Of its steps, those after its first token."""
    decode_tokens: int = 0
    """Computed in these, rejected drafts included."""
    uncertainty: float | None = None
    """Half of an interval, relative to the joules, in which nine of ten true figures lie; None
    where nothing was measured, joules are not the engine's own or are missing, or another policy
    than `shapley` divides them."""
    host_joules: float | None = None
    """Of the host beside its GPUs, shared by GPU seconds; None where nobody counts them, and before
    the last of them are known."""
    host_source: Source | None = None
    water_litres: float | None = None
    """Consumed for the joules; None where the settings name no factor."""

    @property
    def joules(self) -> float:
        """All accounts together."""
        return self.accounts.total

    @property
    def prefill_joules(self) -> float:
        """For users of `meter_generate`."""
        return self.accounts.prefill

    @property
    def decode_joules(self) -> float:
        """For users of `meter_generate`, likewise."""
        return self.accounts.decode


@dataclass(frozen=True, slots=True)
class GpuTotals:
    """One GPU's accounts since the meter started, cumulative."""

    gpu: str
    counter_joules: float
    """Sum of the counter's own increments."""
    account_joules: tuple[float, ...]
    """Indexed by Account; they add up to counter_joules."""
    account_seconds: tuple[float, ...]
    """Indexed by Account; they add up to the time since the first reading."""
    watts: float | None
    allreduce_modelled_joules: float | None = None
    """Of these, what went by while GPUs exchanged results, as the link's data sheet has it; None
    without tensor parallelism."""
    counter_lag_s: float | None = None
    """How late the counter is thought to show what was drawn; None where nothing is known of it."""


@dataclass(frozen=True, slots=True)
class HostTotals:
    """A domain's accounts of the host beside its GPUs, cumulative: this engine's share of it."""

    domain: str
    """package, dram or server."""
    source: Source
    counter_joules: float
    """Sum of the counter's own increments."""
    account_joules: tuple[float, ...]
    """Indexed by Account; they add up to counter_joules."""


@dataclass(frozen=True, slots=True)
class CarbonIntensity:
    """What a kilowatt-hour of a grid emits."""

    grams_per_kwh: float
    zone: str
    provider: str
    """static, table, or the service that answered."""
    valid_since_s: float | None = None
    """Monotonic time from which a service's figure holds; None for a constant."""
    signal: str = "average"
    """average or marginal."""
    factors: str = "unknown"
    """lifecycle or direct emissions."""
    is_estimated: bool = False
    """The service had not measured it yet."""
    source: str = "settings"
    """Who says so, and for when."""

    def age_s(self, now_s: float) -> float:
        """Seconds since its time; 0 for a constant."""
        return 0.0 if self.valid_since_s is None else max(now_s - self.valid_since_s, 0.0)


GPU, CPU = "gpu", "cpu"
"""What a request's joules are of."""
HEARTBEAT_S: Final = 1.0
"""Engines tell their totals at least this often, so that a stalled sampler shows."""


@dataclass(frozen=True, slots=True)
class DeploymentFactors:
    """What a deployment's own steps have shown of its step law: a Gaussian over logarithms."""

    mean: tuple[float, ...]
    """Of each of `step_law.FACTORS`."""
    covariance: tuple[tuple[float, ...], ...]
    ticks: int
    """Seen so far."""


@dataclass(frozen=True, slots=True)
class EngineTotals:
    """Everything engine-wide, cumulative, so that a lost message loses no joules."""

    session: str
    """A new one for every start of an engine: cumulative figures begin at 0 again."""
    engine: int
    source: Source
    gpus: tuple[GpuTotals, ...]
    account_grams: tuple[float, ...]
    """Operational gCO2eq, indexed by Account."""
    embodied_grams: tuple[float, ...]
    """Of the hardware's making, likewise; empty where the settings leave it out."""
    intensity: CarbonIntensity
    """Of the grid now."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """prefill, decode, mixed."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """prefill, decode, recompute."""
    errors: Mapping[str, int] = field(default_factory=dict)
    sampler_gap_s: float = 0.0
    """Since the last reading."""
    sampler_read_s: float = 0.0
    """Seconds that a reading of all GPUs takes, of late."""
    open_requests: int = 0
    factors: DeploymentFactors | None = None
    """Learnt so far; None where the estimates learn nothing here."""
    account_litres: tuple[float, ...] = ()
    """Water for the joules, indexed by Account; empty where the settings name no factor."""
    host: tuple[HostTotals, ...] = ()
    """Of each domain; empty where the settings want none, or it cannot be read."""
    boundary: str = GPU
    covers: str = ""
    """What the figures are of: in a word, and in words as records have it."""

    @property
    def accounted_ratio(self) -> float | None:
        """Sum of all accounts / the counters' increments; None before the first tick."""
        counted = sum(gpu.counter_joules for gpu in self.gpus)
        booked = sum(sum(gpu.account_joules) for gpu in self.gpus)
        return booked / counted if counted > 0 else None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine holds now, for the API servers that do not see each other's requests."""

    engine: int
    requests: Mapping[int, int]
    """By the index of the API server that sent them: those that were in a step and have not ended.
    """


@dataclass(frozen=True, slots=True)
class EstimateQuery:
    """What is known of a request before it runs."""

    prompt_tokens: int
    max_tokens: int | None
    """Upper bound of the output; None where only the context length bounds it."""
    num_sequences: int = 1
    concurrency: float = 1
    """Requests that share the batch, this one included; a mean where it is known afterwards."""
    output_tokens: int | None = None
    """Exactly, where it is known."""
    cached_tokens: float = 0.0
    """Of the prompt, in the prefix cache: as it was, or as expected."""
    verified: float = 1.0
    """Tokens that a decode step computes for a request: one, and drafts."""
    accepted: float = 1.0
    """Tokens of the answer that a decode step adds."""
    remark: str = ""
    """What of the request the estimate leaves out; joins its ``out_of_domain``."""
    adapter: str = ""
    """Of LoRA, whose answers have lengths of their own; empty for the model itself."""


@dataclass(frozen=True, slots=True)
class EnergyEstimate:
    """Energy of a request before it runs: as the model says, and what to multiply that by."""

    method: str
    prefill_joules: float
    decode_joules: float
    low_joules: float
    high_joules: float
    """Interval of the total (10 % to 90 %): output lengths and the model's own error."""
    output_tokens: float
    """Expected number of generated tokens."""
    facility: bool
    """True where the figure already contains the data centre's overhead: no PUE on top."""
    operational_grams: float
    embodied_grams: float | None = None
    """Of the hardware's making; None where the model knows no time or the settings leave it out."""
    out_of_domain: str = ""
    """What was not measured, or is assumed; empty where nothing is."""
    cached_tokens: float = 0.0
    """Of the prompt, expected in the prefix cache."""
    calibration: float = 1.0
    """Measured / estimated as this deployment's own measurements have shown it so far."""

    @property
    def joules(self) -> float:
        """Prefill and decode together, not calibrated."""
        return self.prefill_joules + self.decode_joules

    @property
    def calibrated(self) -> "EnergyEstimate":
        """The estimate that clients are told: all energies and grams times the calibration."""
        factor = self.calibration
        if factor == 1.0:
            return self
        return replace(
            self,
            prefill_joules=self.prefill_joules * factor,
            decode_joules=self.decode_joules * factor,
            low_joules=self.low_joules * factor,
            high_joules=self.high_joules * factor,
            operational_grams=self.operational_grams * factor,
            calibration=1.0,
        )


@dataclass(frozen=True, slots=True)
class Features:
    """What a request looked like when it came and how it ran; never any text or token."""

    arrived_unix_s: float
    """Wall clock, a label only."""
    max_tokens: int | None
    num_sequences: int
    concurrency: int
    """Requests that the engine ran or was about to run when it came, its own included."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an API server runs; what is not known is empty."""

    instance: str = ""
    """A new one at every start; an internal id is unique within it."""
    host: str = ""
    pod: str = ""
    node: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One HTTP exchange, all its engine requests (n > 1, prompt lists) summed."""

    id: str
    """Internal id of its first engine request."""
    external_ids: tuple[str, ...]
    """As clients know it; they choose them and may repeat them."""
    internal_ids: tuple[str, ...]
    model: str
    deployment: Mapping[str, str | int | float]  # an integer stays one when it is read
    """Engine, version, GPU and its power limit, number formats, parallelism."""
    energy: RequestEnergy | None
    """None while nothing is known yet."""
    provisional: RequestEnergy | None
    """What was known, and shown in headers, when the answer left."""
    estimate: EnergyEstimate | None
    conditional: EnergyEstimate | None
    """The estimate given the true length and concurrency; None until these are known."""
    features: Features
    intensity_g_per_kwh: float
    intensity_source: str
    zone: str
    pue: float
    covers: str
    """What the figures are of, in words."""
    tokens_from: TokenCount = TokenCount.ENGINE
    boundary: str = GPU
    """What its joules are of, in a word."""
    whose: Whose = NOBODYS
    cost: Cost | None = None
    """None while nothing is known yet, and where no price is."""
    place: Place = Place()
    """Of the API server that answered; clients see its instance alone."""

    @property
    def is_final(self) -> bool:
        """Whether every engine request has its final figure."""
        return self.energy is not None and self.energy.status is Status.FINAL
