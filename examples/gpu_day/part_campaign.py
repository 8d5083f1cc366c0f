"""Campaign rows: joules of prefill alone and of whole answers, of three models."""

from contextlib import closing
from dataclasses import replace

from part import Day
from rows import SIMULATED

from llm_carbon_meter.campaign.command import jobs_of
from llm_carbon_meter.campaign.plan import TINY_MODEL, make_plan
from llm_carbon_meter.campaign.rows import Measurements
from llm_carbon_meter.campaign.runner import measure
from llm_carbon_meter.power.nvml.survey import survey

PART = "campaign"
FILE = "campaign.csv"


def run(day: Day) -> str:
    """What the file lacks, until the time is over; the file is that of the verb campaign."""
    plan = day.plan
    wanted = make_plan(
        day.options.engine,
        [] if plan.campaign_models == (TINY_MODEL,) else plan.campaign_models,
        dtype="bfloat16",
        gpus=day.gpu.index,
        least_s=plan.least_s,
        repetitions=plan.repetitions,
        tiny=plan.campaign_models == (TINY_MODEL,),
    )
    wanted = replace(wanted, loads=plan.campaign_loads)
    (gpu,) = survey([day.gpu.index]).gpus
    source = SIMULATED if day.options.stub else ""
    with closing(Measurements(day.options.out / FILE)) as file, day.gpu.busy():
        measure(jobs_of(wanted, file, gpu.name, source), file, day.limit_s)
        lacking = jobs_of(wanted, file, gpu.name, source)
    left = sum(occasion.wanted for job in lacking for occasion in job.occasions)
    return f"{left} repetitions" if left else ""
