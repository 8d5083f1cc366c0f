"""All settings, and the only reader of ``os.environ``. README's table is made from these fields."""

import contextlib
import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from llm_carbon_meter.addresses import NOT_SHOWN, check_url, shown_url
from llm_carbon_meter.private_folder import is_private
from llm_carbon_meter.records import ConfigError, Place

PREFIX: Final = "LLM_CARBON_METER_"
CHANNEL_DIR_VARIABLE: Final = PREFIX + "CHANNEL_DIR"
TOLD_VARIABLE: Final = "_" + PREFIX + "TOLD_BY"
"""No setting: the process that told what is wrong with them, for those that it starts."""
MOST_PRICE: Final = 100_000.0
"""Of a kilowatt-hour or a GPU's hour. None is below 0: a counter of money cannot fall."""


def _boolean(text: str) -> bool:
    try:
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
            text.strip().lower()
        ]
    except KeyError:
        raise ValueError("expected 1 or 0") from None


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = float(text)
            if low <= value <= high:  # also refuses nan
                return value
        raise ValueError(f"expected a number from {low:g} to {high:g}")

    return parse


def _automatic(parse: Callable[[str], float]) -> Callable[[str], float | str]:
    """A number, or the word for letting the meter find it."""
    return lambda text: "auto" if text in ("", "auto") else parse(text)


def _optional(parse: Callable[[str], float]) -> Callable[[str], float | None]:
    """A number, or nothing: what is not known is left out."""
    return lambda text: parse(text) if text else None


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            value = int(text)
            if low <= value <= high:
                return value
        raise ValueError(f"expected a whole number from {low} to {high}")

    return parse


_price: Final = _optional(_number(0.0, MOST_PRICE))


def _currency(text: str) -> str:
    if is_currency(text):
        return text
    raise ValueError("expected three letters of ISO 4217, such as EUR")


def is_currency(text: str) -> bool:
    """Whether a text looks like a code of ISO 4217."""
    return len(text) == 3 and text.isascii() and text.isalpha() and text.isupper()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in map(str.strip, text.split(",")) if name)


def _tenant_source(text: str) -> str:
    way, _, name = text.partition(":")
    needs_name = way in ("header", "baggage")
    known = needs_name or way in ("", "adapter", "api_key", "claimed_user")
    if known and bool(name) == needs_name and name.isprintable() and " " not in name:
        return text
    raise ValueError("expected header:NAME, baggage:NAME, api_key, adapter or claimed_user")


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return text

    return parse


def _power(text: str) -> str:
    if text in ("auto", "nvml", "modelled") or text.removeprefix("replay:") not in (text, ""):
        return text
    if _is_rapl(text):
        return text
    raise ValueError("expected auto, nvml, rapl, rapl:FOLDER, modelled or replay:FILE")


def _is_rapl(text: str) -> bool:
    return text == "rapl" or text.removeprefix("rapl:") not in (text, "")


def _host_energy(text: str) -> str:
    kind, _, url = text.partition(":")
    if text in ("", "none"):
        return "none"
    if _is_rapl(text):
        return text
    if kind == "redfish":
        return f"{kind}:{check_url(url, query=False)}"
    try:
        return f"{_number(0.0, 100_000.0)(text):g}"
    except ValueError:
        raise ValueError(
            "expected none, rapl, rapl:FOLDER, redfish:URL, or watts from 0 to 100000"
        ) from None


def _url(text: str) -> str:
    return check_url(text, query=True)


def _url_of_service(text: str) -> str:
    return check_url(text, query=False)


def _setting(default: Any, parse: Callable[[str], Any], doc: str, *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"parse": parse, "doc": doc})


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one process; every field is the variable ``LLM_CARBON_METER_<NAME>``."""

    enabled: bool = _setting(True, _boolean, "0 leaves the server exactly as it was")
    strict: bool = _setting(False, _boolean, "1 stops the start at a wrong setting or power source")
    power: str = _setting(
        "auto",
        _power,
        "`nvml`, `rapl` (CPU packages and memory, or `rapl:FOLDER`), `modelled` (load x data "
        "sheet), `replay:FILE`, or `auto`: NVML if it answers, else RAPL for an engine on the CPU, "
        "else modelled",
    )
    host_energy: str = _setting(
        "none",
        _host_energy,
        "energy of the host beside its GPUs, in figures of its own: `rapl` (CPU packages and "
        "memory; `rapl:FOLDER` where a container has the kernel's class powercap), `redfish:URL` "
        "(the server less its GPUs), or a constant in watts",
        secret=True,
    )
    host_share: float | str = _setting(
        "auto",
        _automatic(_number(0.0, 1.0)),
        "part of the host's energy, and of RAPL's, that is this engine's: `auto` is its GPUs of "
        "those that NVML shows, else its part of the server's engines here",
    )
    assume_gpu: str = _setting(
        "H100",
        str,
        "the GPU of `data/gpus.toml` whose data sheet is taken where the host has no GPU, or one "
        "that is not in there; a GPU that is in there has its own",
    )
    sample_hz: float = _setting(20.0, _number(0.1, 20.0), "readings of every GPU per second")
    counter_lag_s: float | str = _setting(
        "auto",
        _automatic(_number(0.0, 2.0)),
        "how much later than the power was drawn the counter shows it: `auto` begins with what is "
        "known of the GPU and learns each counter's own; a number is added to what is known, and "
        "nothing is learnt",
    )
    mig_parent: bool = _setting(
        False,
        _boolean,
        "1 says that all MIG slices of the GPUs are this engine's, so that it may have all their "
        "joules; else MIG is refused",
    )
    policy: str = _setting(
        "shapley",
        _choice("shapley", "tokens", "flops", "equal"),
        "how a step's joules are divided among its requests",
    )
    prices_file: str = _setting(
        "",
        str,
        "file that keeps over a restart what a step's work costs in seconds and watts, as learnt "
        "from the GPUs, of one model on one kind of GPU, and the lags of their counters; empty: "
        "not kept",
    )
    idle: str = _setting(
        "separate",
        _choice("separate", "by_time"),
        "`by_time` spreads idle joules over the requests in the system",
    )
    carbon_intensity: float = _setting(
        475.0,
        _number(0.0, 5000.0),
        "grid intensity in gCO2eq/kWh (default: world average, IEA 2019)",
    )
    carbon_provider: str = _setting(
        "static",
        _choice("static", "table", "electricitymaps", "ukcarbonintensity"),
        "where it comes from: `static` is the figure above, `table` the yearly mean of a country, "
        "the others are services, asked in the background",
    )
    zone: str = _setting(
        "world", str, "grid zone: an ISO 3166 code such as `DE`, or one of Electricity Maps"
    )
    electricitymaps_token: str = _setting("", str, "token of Electricity Maps", secret=True)
    carbon_url: str = _setting(
        "",
        _url_of_service,
        "address of the service, where it is not its own; without a query",
        secret=True,
    )
    embodied: str = _setting(
        "pcf",
        _choice("pcf", "llmcarbon", "none"),
        "emissions of the hardware's making: `pcf` product footprints, `llmcarbon` die area",
    )
    embodied_host: bool = _setting(False, _boolean, "1 adds each GPU's share of its server")
    pue: float = _setting(
        1.0, _number(1.0, 5.0), "power usage effectiveness; 1.0 counts the GPUs alone"
    )
    water_litres_per_kwh: float | None = _setting(
        None,
        _optional(_number(0.0, 1000.0)),
        "water usage effectiveness (WUE) of the site, in litres per kWh of its computers; empty: "
        "not known",
    )
    water_grid_litres_per_kwh: float | None = _setting(
        None,
        _optional(_number(0.0, 10_000.0)),
        "water that the grid's power stations consume, in litres per kWh, multiplied by the PUE; "
        "empty: left out",
    )
    energy_price: float | None = _setting(
        None, _price, "what a kWh costs, PUE on top; empty: not known"
    )
    tariff_file: str = _setting(
        "", str, "TOML file with a kWh's price by hours of the day, instead of one price"
    )
    gpu_hour_price: float | None = _setting(
        None, _price, "what an hour of one GPU costs; empty: not known"
    )
    currency: str = _setting("USD", _currency, "of these prices, as ISO 4217 has it")
    tenant_from: str = _setting(
        "",
        _tenant_source,
        "what says whose a request is: `header:NAME` (one that the gateway sets and clients "
        "cannot), `api_key`, `baggage:NAME` (of OpenTelemetry), `adapter` (LoRA), or "
        "`claimed_user` (`safety_identifier` or `user` of the body: the client's own word); "
        "empty: nobody asks",
    )
    tenants: tuple[str, ...] = _setting(
        (), _names, "tenants that metrics name, with commas between; empty: the first that come"
    )
    tenant_limit: int = _setting(
        100, _whole(1, 10_000), "how many of the first are named; all others are `other`"
    )
    tenant_keys_file: str = _setting(
        "",
        str,
        "TOML file of keys (or `sha256:` and their digest) and their tenants, for `api_key`; a key "
        "that is not in there is named by 12 digits of its SHA-256",
    )
    admin_key: str = _setting(
        "",
        str,
        "API key that may read every tenant's records; where `header`, `api_key` or `baggage` "
        "tell tenants, any other reads its own tenant's alone",
        secret=True,
    )
    estimator: str = _setting(
        "gnn",
        _choice("gnn", "flop", "none"),
        "how requests are estimated: the trained network, the FLOP formula, or not at all",
    )
    calibration_file: str = _setting(
        "",
        str,
        "file that keeps what this deployment's own steps have shown of its estimates, over a "
        "restart; empty: not kept",
    )
    drift_threshold: float = _setting(
        0.25,
        _number(0.01, 100.0),
        "how far the sum of the estimates may be off that of the measurements before it is an "
        "alarm, as a ratio; the alarm ends below 0.8 of it",
    )
    drift_window_s: float = _setting(
        3600.0, _number(1.0, 604_800.0), "how long a finished request counts for drift"
    )
    drift_min_requests: int = _setting(
        100, _whole(1, 8192), "with fewer measured requests nothing is said about drift"
    )
    drift_webhook: str = _setting(
        "",
        _url,
        "address that gets a JSON message when drift begins and when it ends; empty: none",
        secret=True,
    )
    final_wait_s: float = _setting(
        0.0, _number(0.0, 10.0), "how long a response may wait for its final figure"
    )
    headers: bool = _setting(
        True, _boolean, "0 leaves `LLM-Carbon-*` headers out of answers, where the middleware is on"
    )
    comment: bool = _setting(
        True, _boolean, "0 leaves the last comment out of streams, where the middleware is on"
    )
    provisional_wait_s: float = _setting(
        0.2, _number(0.0, 10.0), "how long a response may wait for its provisional figure"
    )
    records: int = _setting(
        10_000, _whole(1, 1_000_000), "finished requests kept for `/v1/carbon/requests/{id}`"
    )
    request_log: str = _setting("", str, "file for one JSON line per finished request; empty: off")
    request_log_max_bytes: int = _setting(
        64_000_000, _whole(1_000, 10**12), "size at which the request log is rotated"
    )
    request_log_max_age_s: float = _setting(
        86_400.0,
        _number(1.0, 3_153_600_000.0),
        "it is rotated at each multiple of it since 1970 too; 86400 is midnight, UTC",
    )
    request_log_files: int = _setting(120, _whole(1, 9999), "rotated request logs that are kept")
    otlp_logs: str = _setting(
        "",
        _url_of_service,
        "address of an OTLP receiver (gRPC) such as http://collector:4317 that gets each line of "
        "the request log as a log record; empty: none",
    )
    receipt_key: str = _setting(
        "",
        str,
        "private Ed25519 key (PEM) that signs final records; needs the extra `receipts`; empty: "
        "records are not signed",
    )
    channel_dir: str = _setting(
        "", str, "private directory of the sockets between processes; empty: chosen at start"
    )

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] | None = None
    ) -> tuple["Config", list[ConfigError]]:
        """Read the settings; a wrong one keeps its default and is reported.

        Raises:
            ConfigError: a setting is wrong and ``LLM_CARBON_METER_STRICT=1``.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        problems: list[ConfigError] = []
        for setting in fields(cls):
            variable = PREFIX + setting.name.upper()
            text = environment.get(variable)
            if text is None:
                continue
            try:
                values[setting.name] = setting.metadata["parse"](text)
            except ValueError as error:
                shown = shown_value(setting.name, repr(text))
                problems.append(
                    ConfigError(f"{variable}={shown}: {error}; the default is {setting.default!r}")
                )
        problems += _unknown(cls, environment)
        if problems and values.get("strict"):
            raise ConfigError("; ".join(str(problem) for problem in problems))
        return cls(**values), problems


def shown_value(name: str, value: object) -> object:
    """A setting's value as it may be logged and printed."""
    setting = Config.__dataclass_fields__[name]
    if setting.metadata["parse"] is _host_energy:
        return _shown_host_energy(str(value))
    if setting.metadata["parse"] in (_url, _url_of_service):
        return shown_url(str(value))
    return value if setting.repr else NOT_SHOWN


def _shown_host_energy(text: str) -> str:
    """What may be an address may have a password."""
    kind, _, url = text.partition(":")
    if kind == "redfish":
        return f"{kind}:{shown_url(url)}"
    return NOT_SHOWN if "@" in text or "//" in text else text


# Read by the demo, the tests or training, not by the serving process.
DATA_VARIABLE: Final = PREFIX + "DATA"
_OTHER_VARIABLES: Final = {DATA_VARIABLE}


def _unknown(cls: type[Config], environment: Mapping[str, str]) -> list[ConfigError]:
    names = {PREFIX + setting.name.upper() for setting in fields(cls)} | _OTHER_VARIABLES
    return [
        ConfigError(f"{name} is not a setting of llm_carbon_meter; see the table in its README")
        for name in environment
        if name.startswith(PREFIX) and name not in names
    ]


def cuda_visible_devices() -> str | None:
    """CUDA's own variable: which GPUs this process may see, in its order."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def cuda_device_order() -> str:
    """CUDA's own variable: how it numbers GPUs; empty where it is not set."""
    return os.environ.get("CUDA_DEVICE_ORDER", "")


def metrics_folder() -> str | None:
    """prometheus_client's own variable: where several processes keep metrics; None for nowhere."""
    names = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
    return next((os.environ[name] for name in names if name in os.environ), None)


def vllm_plugins() -> list[str] | None:
    """vLLM's own allow-list of plugins by name; None where it allows all."""
    names = os.environ.get("VLLM_PLUGINS")
    return None if names is None else names.split(",")


def runtime_folder() -> Path:
    """Where all meters of this user meet; gone with the machine's next start.

    ``XDG_RUNTIME_DIR`` may be another user's, as after ``sudo -E``; then it is not taken.
    """
    place = os.environ.get("XDG_RUNTIME_DIR", "")
    if place and is_private(Path(place)):
        return Path(place, "llm-carbon-meter")
    return Path(os.environ.get("TMPDIR") or "/tmp", f"llm-carbon-meter-user-{os.getuid()}")  # noqa: S108 - checked to be private


def temporary_folder() -> Path:
    """Where this process may write files that nobody keeps.

    Raises:
        ConfigError: there is no such folder.
    """
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise ConfigError(
            f"a folder for temporary files was looked for: {error.strerror}; set TMPDIR to a "
            f"folder that can be written, or {CHANNEL_DIR_VARIABLE} to a private one"
        ) from None


def data_folder(given: str = "") -> Path:
    """Where the training data lie: what was given, else ``LLM_CARBON_METER_DATA``; no default.

    Raises:
        ConfigError: neither is set, or there is no such folder.
    """
    folder = given or os.environ.get(DATA_VARIABLE, "")
    if not folder:
        raise ConfigError(f"no data folder: give --data or set {DATA_VARIABLE}")
    if not Path(folder).is_dir():
        raise ConfigError(f"the data folder {folder} does not exist")
    return Path(folder)


def place() -> Place:
    """Where this process runs, with a new instance; pod, node and namespace only in Kubernetes.

    The variables of the names are those that a pod's downward API is usually mapped to.
    """
    host = socket.gethostname()
    in_kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ
    return Place(
        instance=uuid.uuid4().hex,
        host=host,
        pod=os.environ.get("POD_NAME", os.environ.get("HOSTNAME", host) if in_kubernetes else ""),
        node=os.environ.get("NODE_NAME", ""),
        namespace=os.environ.get("POD_NAMESPACE", ""),
    )


def told_before() -> bool:
    """Whether a process above this one told what is wrong with the settings that both have."""
    own = str(os.getpid())
    return os.environ.setdefault(TOLD_VARIABLE, own) != own


def share_channel_dir(directory: str) -> None:
    """Let every process started from here find the same sockets."""
    os.environ[CHANNEL_DIR_VARIABLE] = directory


def settings_table() -> str:
    """README's table of settings, in Markdown."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for setting in fields(Config):
        assert setting.default is not MISSING
        default = "" if setting.default in ("", None, ()) else f"`{_shown(setting.default)}`"
        rows.append(f"| `{PREFIX}{setting.name.upper()}` | {default} | {setting.metadata['doc']} |")
    return "\n".join(rows)


def _shown(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
