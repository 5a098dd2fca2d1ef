# Two commands do everything: `make benchmark` and `make test`. Each installs what it needs the first time.

VENV    ?= .venv
PYTHON  ?= python3
DATA    ?=
WEIGHTS ?=
GRID    ?= $(if $(DATA),photos,quick)
OUT     ?= results/runs/$(shell basename -- $(call quoted,$(GRID)) | sed 's/\.[^.]*$$//')
ADDRESS ?=
ARGS    ?=
JOBS    ?= 2

quoted = '$(subst ','\'',$(1))'
digest = $(shell cat $(1) | sha256sum | cut -c1-16)

ifneq ($(words $(VENV)),1)
$(error VENV=$(VENV): name a folder without spaces; make cannot handle them)
endif

# A stamp is named by the digest of what was installed. It depends on no file, since every file of a fresh checkout is newer.
STAMP := $(VENV)/.installed-$(call digest,pyproject.toml constraints.txt)
S3    := build/s3/.installed-$(call digest,tests/s3-server.txt)
AUDIT := build/audit/.tried-2.10.1
BIN   := $(abspath $(VENV))/bin
PY    := PYTHONPATH=$(call quoted,$(CURDIR)) $(call quoted,$(BIN)/python)
BENCH := $(PY) -m harness.cli

.DEFAULT_GOAL := help
.PHONY: help setup benchmark report forms readme test lowest s3 audit soak perf gpu lint types docs hooks format clean

help:  ## explain the targets (what `make` alone does)
	@echo "metrix-bench: a fair benchmark of deep metric learning"; echo
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  GRID=quick  DATA=folder  WEIGHTS=file  OUT=results/runs/quick  VENV=.venv  ARGS='--seeds 0 --set epochs=2'"
	@echo "  ADDRESS=auto, host:port or ray://host:10001 runs it on a ray cluster: clusters/README.md"
	@echo "  grids: $(notdir $(basename $(wildcard harness/grids/*.yaml)))"

setup: $(STAMP)  ## create the virtual environment and install everything (five minutes, once)

$(STAMP):
	test -x $(call quoted,$(BIN)/python) || $(PYTHON) -m venv $(call quoted,$(VENV))
	$(call quoted,$(BIN)/python) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,tune]"
	touch $(call quoted,$(STAMP))

benchmark: $(STAMP)  ## run GRID (default: quick, or photos with DATA; ten minutes on 2 cores), write its leaderboard to OUT
	@$(BENCH) run $(call quoted,$(GRID)) --out $(call quoted,$(OUT)) $(if $(DATA),--data $(call quoted,$(DATA))) \
		$(if $(WEIGHTS),--weights $(call quoted,$(WEIGHTS))) $(if $(ADDRESS),--address $(call quoted,$(ADDRESS))) $(ARGS)

report: $(STAMP)  ## rewrite the leaderboard of OUT from its records
	@$(BENCH) report $(call quoted,$(OUT)) $(ARGS)

forms: $(STAMP)  ## write into README.md which level takes which loss
	@$(BENCH) list forms --format markdown > README.md.part
	@sed -i -e '/forms:begin/,/forms:end/{//!d}' -e '/forms:begin/r README.md.part' README.md && rm README.md.part

readme:  ## copy the leaderboard of OUT into the section of GRID in README.md, with its captions folded
	@sed -i -e '/results:$(GRID):begin/,/results:$(GRID):end/{//!d}' README.md
	@sed -e '/^# /d' -e 's/^## /### /' $(call quoted,$(OUT)/leaderboard.md) | awk -v folded='<details><summary>Settings, notes and statistics of this table</summary>' \
		'/^#/ && open {print "</details>\n"; open = 0} /^[^|#]/ && !open {print folded "\n"; open = 1} {print} END {if (open) print "\n</details>"}' > README.md.part
	@sed -i -e '/results:$(GRID):begin/r README.md.part' README.md && rm README.md.part

# JOBS test files run at a time. Tests of whole clusters use all cores themselves.
test: $(STAMP)  ## run the tests (seven minutes on 2 cores; ARGS='-m slow' runs those of whole clusters, twenty minutes more)
	@$(PY) -m pytest $(if $(findstring slow,$(ARGS)),,-n $(JOBS) --dist loadfile --no-loadscope-reorder) $(ARGS)

lowest:  ## run the tests of computations with the oldest versions that pyproject.toml allows, in a separate environment
	test -x build/lowest/bin/python || $(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/lowest/bin/uv pip install --quiet --python build/lowest/bin/python --resolution lowest-direct \
		-r pyproject.toml --extra dev --extra tune
	@PYTHONPATH=$(call quoted,$(CURDIR)) build/lowest/bin/python -m pytest tests/baselines tests/metrix \
		$(addprefix tests/harness/,data evaluation leaderboard reports runs/test_storage.py training/test_embedder.py \
		training/test_trial.py launch/test_search.py) $(ARGS)

s3: $(S3)  ## install the S3 server that tests of buckets need, in a separate environment

$(S3):
	$(PYTHON) -m venv build/s3
	build/s3/bin/python -m pip install --quiet --disable-pip-version-check -r tests/s3-server.txt
	touch $@

soak: $(STAMP)  ## inject faults into a grid on this machine and check consistency (ARGS='--minutes 5'), then inject each fault alone
	@$(PY) -m tests.cluster.soak $(ARGS)
	@$(PY) -m pytest -m slow tests/cluster

perf: $(STAMP)  ## measure speed and memory, printed as ratios within one run
	@for file in tests/performance/[a-z]*.py; do \
		$(PY) -m tests.performance.$$(basename $$file .py) || exit 1; done

gpu: $(STAMP)  ## test and measure this machine's GPU (eight minutes; DATA=photographs WEIGHTS=NETWORK.safetensors, ARGS)
	@$(PY) -m tests.gpu $(if $(DATA),--data $(call quoted,$(DATA))) $(if $(WEIGHTS),--weights $(call quoted,$(WEIGHTS))) $(ARGS)

lint: $(STAMP) $(AUDIT)  ## check style, types, and dependencies for known vulnerabilities
	@$(call quoted,$(BIN)/ruff) check . && $(call quoted,$(BIN)/ruff) format --check .
	@$(MAKE) --no-print-directory types
	@$(PY) tests/dependencies.py build/audit/bin/pip-audit constraints.txt

types: $(STAMP)  ## check types with pyright: strict in baselines/ and metrix/, standard elsewhere
	@$(call quoted,$(BIN)/pyright) --pythonpath $(call quoted,$(BIN)/python) $(ARGS)

docs: $(STAMP)  ## build the API pages in build/docs from the docstrings, and check their references
	@$(PY) docs/build.py build/docs

hooks: $(STAMP)  ## install the checks that run before each commit (ruff, types, examples in docstrings)
	$(call quoted,$(BIN)/python) -m pip install --quiet --disable-pip-version-check pre-commit
	$(call quoted,$(BIN)/pre-commit) install

audit: $(AUDIT)

$(AUDIT):
	-$(PYTHON) -m venv build/audit && build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==$(subst build/audit/.tried-,,$(AUDIT))
	mkdir -p build/audit && touch $@

format: $(STAMP)  ## format the sources
	@$(call quoted,$(BIN)/ruff) check --fix . ; $(call quoted,$(BIN)/ruff) format .

clean:  ## remove the virtual environment and caches; results stay
	rm -rf .venv .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
