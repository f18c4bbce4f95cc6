# Two verbs are all the set-up there is: `make demo` and `make test`. The environment in .venv is made once; a stamp
# remembers for which pyproject.toml and constraints.txt, so that a second run starts at once.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
OUT := outputs/demo.mp4
PROMPT := a large red circle moves right on a black background

# The first interpreter that runs and is new enough. Override with: make demo PYTHON=/path/to/python3.11
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench train-smoke reproduce-embedded clean
.DELETE_ON_ERROR:

help:
	@echo "make demo                generate $(OUT) with the embedded model"
	@echo "make test                lint, types, import contracts, tests"
	@echo "make lint                lint, types and import contracts only"
	@echo "make bench               our networks against diffusers, on this CPU"
	@echo "make train-smoke         every stage of the report for two steps, chained, ending in a video"
	@echo "make reproduce-embedded  train the embedded model again from nothing (docs/results/embedded-model.md)"
	@echo "make clean               remove $(VENV)"

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer was not found; install it, or name one: make demo PYTHON=/path/to/python3.11" >&2; \
		exit 1; fi
	$(PYTHON) -m venv $(VENV)

# $(call install,EXTRAS): editable, so that the tree is what runs; constraints.txt pins what the tests ran with.
install = $(PIP) install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.$(1)'

# A variable, because a comma written in a call would end its argument.
DEV_EXTRAS := [dev,train,curate]

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing openhunyuan into $(VENV) (PyTorch is large: minutes the first time) ..."
	@$(call install,)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the development tools into $(VENV) ..."
	@$(call install,$(DEV_EXTRAS))
	@touch $(VENV)/.core $@

demo: $(VENV)/.core
	@mkdir -p $(dir $(OUT))
	@$(BIN)/openhunyuan generate --prompt "$(PROMPT)" --seed 1 --output-path $(OUT)
	@echo
	@echo "The video is at $(CURDIR)/$(OUT)"
	@echo "Another one:  make demo PROMPT=\"a small green star spins clockwise on a navy striped background\""
	@echo "     or:      $(BIN)/openhunyuan generate --prompt \"...\" --seed 2 --output-path out.mp4"
	@echo "What the embedded model understands: docs/guides/generate.md"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.dit
	$(BIN)/python -m benchmarks.vae

train-smoke: $(VENV)/.dev
	$(BIN)/python -m tools.train_smoke

# Each recipe resumes where its directory stands; the last one leaves the complete model in runs/tiny-video-last/model.
reproduce-embedded: $(VENV)/.dev
	$(BIN)/openhunyuan train tiny-text
	$(BIN)/openhunyuan train tiny-vae
	$(BIN)/openhunyuan train tiny-vae-decoder
	$(BIN)/openhunyuan train tiny-image
	$(BIN)/openhunyuan train tiny-video
	$(BIN)/openhunyuan train tiny-video-finish
	$(BIN)/openhunyuan train tiny-video-last
	@echo "The model is in runs/tiny-video-last/model; try: $(BIN)/openhunyuan generate --model runs/tiny-video-last/model --prompt \"$(PROMPT)\""

clean:
	rm -rf $(VENV)
