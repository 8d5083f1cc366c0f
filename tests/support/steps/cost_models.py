"""Cost models of steps: dense, with a window, with experts, and of a model that nobody knows."""

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_work import CostModel

H100 = gpu_spec("H100")
QWEN = CostModel(H100, step_costs(built_in_model("Qwen2-0.5b")))
LLAMA = CostModel(H100, step_costs(built_in_model("Llama-3.1-8B")))
GEMMA = CostModel(gpu_spec("L4"), step_costs(built_in_model("Gemma2-2b")))
MIXTRAL = CostModel(H100, step_costs(built_in_model("Mixtral-8x7B"), 4))
UNKNOWN = CostModel(H100, None)
