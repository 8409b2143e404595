# The study and its tests. A bare `make` lists what there is.
PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/.ready
PIP    := $(VENV)/bin/python -m pip install -q
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := true
JOBS   ?= $(shell nproc 2> /dev/null || echo 2)

.DEFAULT_GOAL := help
.PHONY: help study test test-slow lint benchmarks lab timings clean

help:  ## list these targets
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

# PyTorch first and by its exact version: left to the resolver, it can bring gigabytes of another build along.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into $(VENV) (once; some minutes) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e ".[study,test]"
	@ln -sf ../../../jupyter_server_config.py $(VENV)/etc/jupyter/  # for every Jupyter of this environment
	@touch $@

study: $(READY)  ## run what changed, for the profiles in params.yaml; PROFILE=x adds profile x to them and runs it alone
	@python -m msif.study.pipeline.study $(PROFILE)

test: study  ## after the study, the module tests, and the notebooks once more against what they claim
	pytest -q -n $(JOBS) -m "not slow"
	pytest -q -n $(JOBS) --dist loadfile -p no:cacheprovider --nbval-lax --nbval-current-env tests/study/claims

test-slow: $(READY)  ## the tests that take minutes
	pytest -q -n $(JOBS) -m slow

lint: $(READY)  ## format, lint, types and the laws of who may import whom; what .pre-commit-config.yaml runs
	ruff format --check msif tests benchmarks
	ruff check msif tests benchmarks
	mypy
	lint-imports

benchmarks: $(READY)  ## msif beside other libraries, by size and precision, into reports/benchmarks: hours; what is finished is kept
	$(PIP) --no-deps -r benchmarks/requirements.txt
	python benchmarks/peers.py --resume
	python benchmarks/size.py
	python benchmarks/precision.py
	python benchmarks/billions.py
	python benchmarks/planned.py

lab: $(READY)  ## JupyterLab on the notebooks: what is changed and run there has a place of its own, results/by-hand
	jupyter lab --LabApp.default_url=/lab/tree/notebooks

timings: $(READY)  ## seconds and peak memory of each notebook's last run; PROFILE=x: of that profile alone
	@python -m msif.study.pipeline.run --timings $(PROFILE)

clean:  ## remove results/, scratch/ and DVC's cache, of every profile; reports/, data/ and .venv/ stay
	rm -rf results scratch .dvc/cache .dvc/tmp .pytest_cache
	find msif tests notebooks reports -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
