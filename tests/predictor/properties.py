"""What must hold of every estimate: counted over models, GPUs, parallelism, engines and loads.

    python -m tests.predictor.properties

prints the number of violations of each property over the whole list, some minutes long.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.physics.gpu_specs import GpuSpec, at_limit, gpu_specs
from llm_carbon_meter.physics.model_list import built_in_config, built_in_model, built_in_names
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.physics.number_formats import with_dtype
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.gnn import BoundGnn, GnnModel

ENGINES = (("vllm", "0.11.1"), ("vllm", "0.32.0"), ("transformers", "5.2.0"), ("", ""))
PARALLEL = (1, 2, 4, 8)
BATCHES = np.array([1.0, 2.0, 8.0, 32.0, 128.0, 512.0])
PROMPTS = np.array([32.0, 512.0, 4096.0, 16384.0])
OUTPUTS = np.array([1.0, 16.0, 256.0, 2048.0])
ROUNDING = 1e-9
MORE_PER_REQUEST = 0.01
"""A request in a larger batch may cost so much more, from rounding to saturation."""
OVER_LIMIT = 0.02
LIMIT = 0.6
"""Of the dynamic power, that a lower limit leaves."""
WEIGHT_ONLY = ("int4", "mxfp4")
MODEL = GnnModel()


def every_gpu() -> list[GpuSpec]:
    """Each of the table once."""
    return list({gpu.name: gpu for gpu in gpu_specs().values()}.values())


def deployments(step: int = 1) -> Iterator[Deployment]:
    """Every ``step``-th of all deployments whose heads can be divided."""
    all_of_them = (
        Deployment(built_in_model(name), gpu, gpus, *engine)
        for name, gpu, gpus, engine in product(built_in_names(), every_gpu(), PARALLEL, ENGINES)
        if built_in_model(name).num_heads % gpus == 0
    )
    return (place for number, place in enumerate(all_of_them) if number % step == 0)


def violations(place: Deployment) -> Counter[str]:
    """How often each property is broken on a deployment."""
    bound = MODEL.bind(place)
    batch, prompt, output = (
        axis.ravel() for axis in np.meshgrid(BATCHES, PROMPTS, OUTPUTS, indexing="ij")
    )
    energy = bound.phases(batch, prompt, output)
    shape = (len(BATCHES), len(PROMPTS), len(OUTPUTS))
    request = (energy.prefill_joules + energy.decode_joules).reshape(shape)
    whole = request * BATCHES[:, None, None]
    watts = request / energy.gpu_seconds.reshape(shape)
    counts = {
        "energy rises with the prompt": (np.diff(request, axis=1) <= 0).sum(),
        "energy rises with the output": (np.diff(request, axis=2) <= 0).sum(),
        "energy of a batch rises with its size": (np.diff(whole, axis=0) <= 0).sum(),
        "a request costs no more in a larger batch": (
            request[1:] / request[:-1] > 1 + MORE_PER_REQUEST
        ).sum(),
        "power stays below the limit": (watts > place.gpu.board_watts * (1 + OVER_LIMIT)).sum(),
        "figures are finite and above 0": (~(np.isfinite(request) & (request > 0))).sum(),
        "weight-only formats decode no dearer": _dearer(place, bound),
        "a new version differs by no more than its interval": _strange(place, bound),
        **_at_a_limit(place, request, energy.gpu_seconds.reshape(shape)),
    }
    return Counter({name: int(count) for name, count in counts.items()})


def _at_a_limit(
    place: Deployment, request: NDArray[np.float64], gpu_seconds: NDArray[np.float64]
) -> dict[str, int]:
    """The same requests on GPUs that are set to a lower limit: slower, with no more energy."""
    if place.engine_version != "0.11.1":
        return {}
    gpu = place.gpu
    limited = at_limit(gpu, gpu.idle_watts + LIMIT * (gpu.board_watts - gpu.idle_watts))
    axes = (axis.ravel() for axis in np.meshgrid(BATCHES, PROMPTS, OUTPUTS, indexing="ij"))
    energy = MODEL.bind(replace(place, gpu=limited)).phases(*axes)
    joules = (energy.prefill_joules + energy.decode_joules).reshape(request.shape)
    seconds = energy.gpu_seconds.reshape(request.shape)
    return {
        "power stays below a limit that is set": (
            joules / seconds > limited.limit_watts * (1 + OVER_LIMIT)
        ).sum(),
        "a lower limit costs no energy": (joules > request * (1 + ROUNDING)).sum(),
        "a lower limit saves no time": (seconds < gpu_seconds * (1 - ROUNDING)).sum(),
    }


ALONE = 1.0, 512.0, 256.0


def _dearer(place: Deployment, bound: BoundGnn) -> int:
    """Formats of 4 bits against 16 in decode at batch 1, where the model is in 16 bits."""
    if place.model.weight_bytes != 2.0 or place.model.expert_weight_bytes != 2.0:
        return 0
    plain = bound.phases(*ALONE).decode_joules
    count = 0
    for dtype in WEIGHT_ONLY:
        config = with_dtype(built_in_config(place.model.name), dtype)
        packed = replace(place, model=model_spec(config, place.model.name))
        count += MODEL.bind(packed).phases(*ALONE).decode_joules > plain * (1 + ROUNDING)
    return int(count)


def _strange(place: Deployment, bound: BoundGnn) -> int:
    """vLLM of a version that nobody measured against the nearest that was."""
    if (place.engine, place.engine_version) != ("vllm", "0.32.0"):
        return 0
    kin = MODEL.bind(replace(place, engine_version="0.11.1"))
    strange = 0
    for batch in (1.0, 32.0):
        new, old = (one.phases(batch, 512.0, 256.0) for one in (bound, kin))
        totals = [one.prefill_joules + one.decode_joules for one in (new, old)]
        strange += abs(np.log(totals[0] / totals[1])) > new.width
    return strange


def count(step: int = 1) -> tuple[int, Counter[str]]:
    """Deployments looked at, and violations of each property."""
    places, total = 0, Counter[str]()
    for place in deployments(step):
        places += 1
        total.update(violations(place))
    return places, total


if __name__ == "__main__":
    number, broken = count()
    print(f"{number} deployments at {len(BATCHES) * len(PROMPTS) * len(OUTPUTS)} loads each")
    for words, times in broken.items():
        print(f"{times:6d}  {words}")
    print(f"{sum(broken.values()):6d}  violations")
