# Two commands matter: `make demo` and `make test`. Everything else is a stage or a check.
# Needs Python 3.11+, git and make; all the rest is installed into .venv from requirements.lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOKENMILL := $(BIN)/tokenmill
UV := $(shell command -v uv 2>/dev/null || echo $(BIN)/uv)
RECIPE ?= pipelines/recipes/demo.yaml
OUT ?= demo-out
ARGS ?=
LOCKED_EXTRAS := demo aws fsspec-backends nsfw transnet wandb trackio liger dev# not vllm: it pins another torch

.PHONY: setup demo toyworld toyworld-study test lint types check bench bench-peers docs lock clean-demo run ingest score select filter caption tokenize plan train generate evaluate evaluate-tokenizer report status estimate export-clips export-drawn train-tokenizer gc takedown submit help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## install everything into .venv (a minute with a warm cache, 8 GB)

$(VENV)/.installed: requirements.lock requirements-nodeps.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || uv venv --python $(PYTHON) $(VENV)
	@test -x "$(UV)" || $(BIN)/python -m pip install --quiet uv
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(UV) pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode -r requirements.lock
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(UV) pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode -r requirements-nodeps.lock
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup  ## the whole way on real media, 10 minutes on 2 cores; ends with the path of the report
	@$(TOKENMILL) demo --out $(OUT) $(ARGS)

test: setup  ## every test that needs no GPU
	@$(BIN)/python -m pytest $(ARGS)

lint: setup  ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup  ## strict mypy
	@$(BIN)/mypy

check: lint types test  ## what CI asks for

bench: setup  ## every benchmark, one JSON object each
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file --json || exit 1; done

bench-peers: setup  ## loaders of others into .venv-peers, for benchmarks/loader.py (a minute with a warm cache, 7 GB)
	@test -x .venv-peers/bin/python || $(BIN)/python -m venv --without-pip .venv-peers
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(UV) pip install --quiet --python .venv-peers/bin/python --no-deps -r benchmarks/requirements-peers.txt

docs: setup  ## the pictures in docs/ and the table of commands, from the demo's report
	@$(BIN)/python docs/build.py

lock: setup  ## pin again what pyproject.toml asks for
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(UV) pip compile --quiet pyproject.toml $(addprefix --extra ,$(LOCKED_EXTRAS)) --override requirements-override.txt \
		--python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -o requirements.lock

# One a stage: make filter RECIPE=my.yaml ARGS="execution.workers=8"
run ingest score select filter caption tokenize plan train generate evaluate report status gc takedown estimate export-clips export-drawn train-tokenizer: setup
	@$(TOKENMILL) $@ $(RECIPE) $(ARGS)

evaluate-tokenizer: setup  ## make evaluate-tokenizer SPEC=scenes DATA="photos clips"
	@$(TOKENMILL) evaluate-tokenizer $(SPEC) --data $(DATA) $(ARGS)

submit: setup  ## make submit STAGE=tokenize RECIPE=my.yaml ADDRESS=http://head:8265
	@$(TOKENMILL) submit $(STAGE) $(RECIPE) --address $(ADDRESS) $(ARGS)

toyworld: setup  ## a small world from raw data to drawn, judged pictures; an hour on 2 cores, resumable; the table goes into docs/toyworld.md
	@$(BIN)/python -m benchmarks.toyworld.run $(if $(findstring --quick,$(ARGS)),--out toyworld-quick-out,--out toyworld-out --table docs/toyworld.md) $(ARGS)

toyworld-study: setup  ## toyworld at three sizes of model, a mixed one against two specialists: make toyworld-study DEVICE=cuda SIZES="small large"
	@$(BIN)/python -m benchmarks.toyworld.study --out toyworld-study-out --device $(or $(DEVICE),cpu) $(if $(SIZES),--sizes $(SIZES)) $(ARGS)
