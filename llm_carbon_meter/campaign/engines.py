"""Engines as a campaign drives them: whole batches, random weights at a model's true shapes.

Random weights are normal at the scale of the model's own initialiser: values move the power of
matrix products, zeros by a lot.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from llm_carbon_meter.campaign.plan import Load
from llm_carbon_meter.records import ConfigError, MeterError

DEFAULT_SCALE: Final = 0.02
"""Of initialisers where a configuration names none."""
SEED: Final = 0


Result = TypeVar("Result")


class OutOfMemory(MeterError):  # noqa: N818 - a state that is recorded
    """A model or a batch does not fit."""


class Engine(Protocol):
    """A loaded model."""

    def run(self, load: Load) -> None:
        """Compute a whole batch; returns when the GPUs are through.

        Raises:
            OutOfMemory: it does not fit.
        """
        ...


def load_engine(
    engine: str,
    config: Mapping[str, Any],
    checkpoint: str,
    dtype: str,
    tensor_parallel: int,
    loads: Sequence[Load],
) -> Engine:
    """Load a model, of random weights where it has no checkpoint.

    Args:
        engine: vllm or transformers.
        config: of the model, as in its config.json.
        checkpoint: folder of its weights; empty for none.
        dtype: of weights and computation.
        tensor_parallel: GPUs.
        loads: that will be run.

    Raises:
        ConfigError: the engine is not installed, or does not know the model.
        OutOfMemory: the weights do not fit.
    """
    makers: Mapping[str, Callable[..., Engine]] = {"vllm": Vllm, "transformers": Transformers}
    try:
        return _guarded(lambda: makers[engine](config, checkpoint, dtype, tensor_parallel, loads))
    except ImportError as error:
        raise ConfigError(f"--engine {engine}: {error}; install it, or choose another") from error


def _guarded(call: Callable[[], Result]) -> Result:
    """Errors of memory, which come in several forms, as one."""
    import torch

    try:
        return call()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error)) from error
    except (RuntimeError, ValueError) as error:
        if any(word in str(error) for word in _MEMORY_WORDS):
            raise OutOfMemory(str(error)) from error
        raise


_MEMORY_WORDS: Final = (
    "can't allocate memory",  # torch on the CPU
    "CUDA out of memory",
    "No available memory for the cache blocks",  # vLLM
    "larger than the available KV cache memory",
)


class Transformers:
    """``generate`` of transformers, in this process; arguments as for `load_engine`."""

    def __init__(
        self,
        config: Mapping[str, Any],
        checkpoint: str,
        dtype: str,
        _tensor_parallel: int,
        _loads: Sequence[Load],
    ) -> None:
        import torch
        import transformers

        self._torch, self._device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        settings = transformers.AutoConfig.for_model(**config)
        torch.manual_seed(SEED)
        kind = transformers.AutoModelForCausalLM
        # Attention is transformers' own choice: sdpa where the model has it, which Bloom has not.
        common = {"dtype": getattr(torch, dtype)}
        with torch.device(self._device):
            model = (
                kind.from_pretrained(checkpoint, **common)
                if checkpoint
                else kind.from_config(settings, **common)
            )
        self._model = model.eval()
        self._vocabulary = int(settings.get_text_config().vocab_size)

    def run(self, load: Load) -> None:
        """Greedy, of an exact length."""
        _guarded(lambda: self._run(load))

    def _run(self, load: Load) -> None:
        shape = load.batch, load.prompt_tokens
        prompts = self._torch.randint(1, self._vocabulary, shape, device=self._device)
        self._model.generate(
            prompts,
            attention_mask=self._torch.ones_like(prompts),
            max_new_tokens=load.output_tokens,
            min_new_tokens=load.output_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        if self._device == "cuda":
            self._torch.cuda.synchronize()


class Vllm:
    """vLLM's engine, in this process; arguments as for `load_engine`."""

    def __init__(
        self,
        config: Mapping[str, Any],
        checkpoint: str,
        dtype: str,
        tensor_parallel: int,
        loads: Sequence[Load],
    ) -> None:
        import json
        import tempfile
        from pathlib import Path

        import torch
        import vllm

        self._vllm, self._random = vllm, torch.Generator().manual_seed(SEED)
        self._vocabulary = int(config["vocab_size"])
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(dict(config)))
            self._llm = vllm.LLM(
                model=checkpoint or folder,
                skip_tokenizer_init=True,
                load_format="auto" if checkpoint else "dummy",
                dtype=dtype,
                tensor_parallel_size=tensor_parallel,
                max_model_len=max(load.prompt_tokens + load.output_tokens for load in loads),
                max_num_seqs=max(load.batch for load in loads),
                # Prompts are random, but a prefill that is repeated shall be computed again.
                enable_prefix_caching=False,
                enforce_eager=not torch.cuda.is_available(),
            )
        if not checkpoint:
            scale = float(config.get("initializer_range", DEFAULT_SCALE))
            # Of several GPUs each has a process of its own: a lambda could not be sent there.
            self._llm.apply_model(functools.partial(_draw_weights, scale=scale))

    def run(self, load: Load) -> None:
        """Greedy, of an exact length."""
        _guarded(lambda: self._run(load))

    def _run(self, load: Load) -> None:
        import torch

        shape = load.batch, load.prompt_tokens
        prompts = torch.randint(1, self._vocabulary, shape, generator=self._random).tolist()
        self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            self._vllm.SamplingParams(
                max_tokens=load.output_tokens, temperature=0.0, ignore_eos=True, detokenize=False
            ),
            use_tqdm=False,
        )


def _draw_weights(model: Any, scale: float) -> None:
    """In place of vLLM's dummy weights, which are within a thousandth of zero, norms too."""
    import torch

    for parameter in model.parameters():
        if parameter.dtype in (torch.float32, torch.float16, torch.bfloat16):
            if parameter.dim() > 1:
                parameter.data.normal_(0.0, scale)
            else:
                parameter.data.zero_()
    for module in model.modules():
        kind = type(module).__name__
        if "Norm" in kind and getattr(module, "weight", None) is not None:
            # Gemma's norms scale by one more than their weight.
            module.weight.data.fill_(0.0 if "Gemma" in kind else 1.0)
