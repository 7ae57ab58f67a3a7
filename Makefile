# Everything a developer runs. Needs python3.11, make and git; the rest comes through pip.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env data demo lint format test test-all bench clean

PYTHON  ?= python3.11
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
BIN     := .venv/bin
ENV     := .venv/.stamp
MODEL   := $(or $(DRAWPLATE_DATA),build/data)/smollm2-135m-instruct/ungridded
STOCK   := build/bench/stock/model.pte
LINEARS := build/bench/linears/model.pte
# meta-8da4w without what only our lowering makes use of
STOCK_RECIPE := 'quantize-embedding,quantize-weights{scale=bf16},quantize-weights{where=head,bits=8,block=1x-1},\
	quantize-activations,add-kv-cache,last-position'

# One thread per process: the tests run side by side, and more threads would only fight over the cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

env: $(ENV)  ## make .venv with the package, editable, and the exact versions of constraints.txt
$(ENV): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

data: env  ## fetch the real models and texts into build/data (or $DRAWPLATE_DATA)
	@$(BIN)/python scripts/fetch_data.py

demo: env data  ## compile a real model for this machine, run the result and print the report
	$(BIN)/python scripts/demo.py

lint: env  ## ruff, mypy --strict, and the rules of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/link_types.py
	$(BIN)/mypy
	$(BIN)/mypy scripts
	$(BIN)/pytest -q tests/packaging/test_house.py

format: env  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: env data lint  ## what CI runs: lint, then every test that is not slow
	$(BIN)/pytest -n $(WORKERS) -m 'not slow'

test-all: env data lint  ## the slow tests too
	$(BIN)/pytest -n $(WORKERS)

bench: demo $(STOCK) $(LINEARS)  ## measure compile cost by depth, and speed beside the stock lowering (tens of minutes)
	$(BIN)/python benchmarks/lowering.py $(MODEL) --layers 4 --layers 8 --layers 16 --layers 30
	$(BIN)/python benchmarks/speed.py $(foreach r,fp32 8da8w meta-8da4w,$(r)=build/demo/$(r)) stock=$(dir $(STOCK)) \
		linears=$(dir $(LINEARS)) --baseline fp32 --baseline stock

$(STOCK):
	$(BIN)/python benchmarks/stock_route.py $(MODEL) $@ --recipe $(STOCK_RECIPE) --structure model

$(LINEARS):
	$(BIN)/python benchmarks/linears.py $(MODEL) $(dir $@)

clean:  ## remove what was built; .venv and build/data stay
	find build -mindepth 1 -maxdepth 1 ! -name data -exec rm -rf {} +
	rm -rf dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
