"""Exact shares: every subset of a step's requests is run by itself, and its joules are measured.

The Shapley value of these joules is what each request truly costs; the report sets the meter's
policies beside it.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial

from part import Day

from llm_carbon_meter.campaign.subsets import Subset, subsets

PART = "shares"
WARM_UP_S, LEAST_S, MOST_S = 0.5, 0.25, 3.0
"""Before a subset is measured; and how long it is."""


def key_of(batch: str, members: Subset) -> str:
    """Of a subset's row."""
    return f"{batch}:{'+'.join(map(str, members))}"


def lacking(day: Day) -> Iterator[tuple[str, Subset]]:
    """Subsets that have no row yet."""
    for batch, members in day.plan.batches.items():
        for subset in subsets(len(members)):
            if not day.rows.has(PART, "subset", key_of(batch, subset)):
                yield batch, subset


def run(day: Day) -> str:
    """Batch after batch, each subset for its share of the time."""
    from llm_carbon_meter.campaign.torch_work import Decoder
    from llm_carbon_meter.power.nvml.nvml_meter import open_nvml

    todo = list(lacking(day))
    with closing(open_nvml([day.gpu.index])) as meter:
        for batch in dict.fromkeys(batch for batch, _ in todo):
            members = day.plan.batches[batch]
            decoder = Decoder(day.plan.decoder, members, day.gpu.device)
            for subset in [subset for name, subset in todo if name == batch]:
                if not _measure(day, meter, decoder, batch, subset):
                    return f"{len(list(lacking(day)))} of the subsets"
            del decoder
            _free(day.gpu.device)
    return ""


def _measure(day: Day, meter: object, decoder: object, batch: str, subset: Subset) -> bool:
    """One subset; False where the time is over."""
    from llm_carbon_meter.campaign.measuring import repeated

    each_s = day.left_s / max(len(list(lacking(day))), 1)
    warm_up_s = min(WARM_UP_S, each_s / 3)
    seconds = min(max(each_s - warm_up_s, LEAST_S), MOST_S)
    if not day.has_time(seconds + warm_up_s):
        return False
    work = partial(decoder.step, subset)  # type: ignore[attr-defined]
    work()
    with day.gpu.busy():
        one = repeated(meter, work, day.gpu.device, seconds, warm_up_s)  # type: ignore[arg-type]
    members = [list(row) for row in day.plan.batches[batch]]
    day.rows.add(
        PART,
        "subset",
        key_of(batch, subset),
        batch=batch,
        requests=members,
        members=list(subset),
        joules=one.joules,
        step_s=one.seconds,
        measured_s=seconds,
        at_s=time.monotonic(),
    )
    return True


def _free(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
