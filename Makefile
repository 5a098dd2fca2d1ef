# Two commands do everything: `make benchmark` and `make test`. Each installs what it needs the first time.

VENV    ?= .venv
PYTHON  ?= python3
GRID    ?= quick
DATA    ?=
WEIGHTS ?=
OUT     ?= results/runs/$(notdir $(basename $(GRID)))
ADDRESS ?=
ARGS    ?=

BIN   := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
BENCH := PYTHONPATH=$(CURDIR) $(BIN)/python -m harness.cli

.DEFAULT_GOAL := help
.PHONY: help setup benchmark report readme test s3 soak perf gpu lint format clean

help:  ## explain the targets (what `make` alone does)
	@echo "metrix-bench: a fair benchmark of deep metric learning"; echo
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  GRID=$(GRID)  DATA=folder  OUT=$(OUT)  VENV=$(VENV)  ARGS='--seeds 0 --set epochs=2'"
	@echo "  ADDRESS=auto, host:port or ray://host:10001 runs it on a ray cluster: clusters/README.md"
	@echo "  grids: $(notdir $(basename $(wildcard harness/grids/*.yaml)))"

setup: $(STAMP)  ## make the virtual environment and install everything (five minutes, once)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,tune]"
	touch $(STAMP)

benchmark: $(STAMP)  ## run GRID (default: quick, 10 minutes on 2 cores) and write its leaderboard to OUT
	@$(BENCH) run $(GRID) --out '$(OUT)' $(if $(DATA),--data $(DATA)) $(if $(ADDRESS),--address $(ADDRESS)) $(ARGS)

report: $(STAMP)  ## write the leaderboard of OUT again from its records
	@$(BENCH) report '$(OUT)' $(ARGS)

readme:  ## put the leaderboard of OUT into README.md
	@sed -i -e '/results:begin/,/results:end/{//!d}' README.md
	@sed -e '/^# /d' -e 's/^## /### /' $(OUT)/leaderboard.md > README.md.part
	@sed -i -e '/results:begin/r README.md.part' README.md && rm README.md.part

test: $(STAMP)  ## run the tests (thirteen minutes on 2 cores; ARGS='-m slow' runs those that start whole clusters, twenty more)
	@PYTHONPATH=$(CURDIR) $(BIN)/python -m pytest $(ARGS)

s3: build/s3/.installed  ## install the S3 server that tests of buckets need, in an environment of its own

build/s3/.installed: tests/s3-server.txt
	$(PYTHON) -m venv build/s3
	build/s3/bin/python -m pip install --quiet --disable-pip-version-check -r tests/s3-server.txt
	touch $@

soak: $(STAMP)  ## disturb a grid on a cluster of this machine, check its books (ARGS='--minutes 5'), then try every fault
	@PYTHONPATH=$(CURDIR) $(BIN)/python -m tests.cluster.soak $(ARGS)
	@PYTHONPATH=$(CURDIR) $(BIN)/python -m pytest -m slow tests/cluster

perf: $(STAMP)  ## measure speed and memory, printed as ratios within one run
	@for file in tests/performance/[a-z]*.py; do \
		PYTHONPATH=$(CURDIR) $(BIN)/python -m tests.performance.$$(basename $$file .py) || exit 1; done

gpu: $(STAMP)  ## test and measure this machine's GPU (eight minutes; DATA=photographs WEIGHTS=NETWORK.safetensors, ARGS)
	@PYTHONPATH=$(CURDIR) $(BIN)/python -m tests.gpu $(if $(DATA),--data '$(DATA)') $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(ARGS)

lint: $(STAMP) build/audit/.tried  ## check style, errors that a linter finds, and dependencies for known vulnerabilities
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/python tests/dependencies.py build/audit/bin/pip-audit constraints.txt

build/audit/.tried:
	-$(PYTHON) -m venv build/audit && build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	mkdir -p build/audit && touch $@

format: $(STAMP)  ## rewrite the sources in the project's format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean:  ## remove the virtual environment and caches; results stay
	rm -rf .venv .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
