"""Meters one ``generate`` and prints its energy; run by the Python of any environment."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM

from llm_carbon_meter import meter_generate

model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
prompt = torch.arange(5, 45).reshape(1, 40)
with meter_generate(model) as meter:
    answer = model.generate(prompt, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
    total = meter.energy().total
assert meter.totals is not None
(gpu,) = meter.totals.gpus
figures = {
    "output_tokens": total.output_tokens,
    "num_steps": total.num_steps,
    "prefill_joules": total.prefill_joules,
    "decode_joules": total.decode_joules,
    "account_joules": list(gpu.account_joules),
    "counter_joules": gpu.counter_joules,
}
print("\n" + json.dumps(figures))
