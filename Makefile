# `make` lists the targets. Needed: Python 3.10 or newer, pip and make.

PYTHON ?= python3
BIN := .venv/bin
STUDY ?= results/quickstart
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# A stamp is written after a successful install, and the install is repeated once pyproject.toml is newer.
READY := .venv/.installed
DEV := .venv/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-thorough test-lab test-ray chaos lint lock audit schema bench screenshots dev clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(READY)  ## install and run a whole search on scikit-learn's digits, offline
	$(BIN)/python -m search run configs/quickstart.yaml

test: $(DEV)  ## install and run the tests, two files at a time; ARGS="-m 'not slow'" goes to pytest
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-thorough: $(DEV)  ## install and run the tests that `make test` leaves to CI
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --thorough -m thorough $(ARGS)

test-lab: $(DEV)  ## install and run the tests on machines in namespaces, as root on Linux; CI runs both
	$(BIN)/python -m pytest --lab -m lab $(ARGS)

# Ray VERSION lies in a folder of its own, whose Python finds everything else in .venv. Older releases leave
# files and processes for Python to close, of which Python warns.
RAY := .venv-ray/$(VERSION)
test-ray: $(DEV)  ## install another Ray beside .venv and run the tests marked every_ray; VERSION=2.59.0
	@test -n "$(VERSION)" || { echo "make test-ray: name the release of Ray, such as VERSION=2.59.0"; exit 2; }
	$(BIN)/python -m venv --without-pip $(RAY)
	$(BIN)/python -m pip --python $(RAY)/bin/python install --quiet --disable-pip-version-check --no-deps ray==$(VERSION)
	echo "import site; site.addsitedir('$$($(BIN)/python -c "import site; print(site.getsitepackages()[0])")')" \
		> $$($(RAY)/bin/python -c "import site; print(site.getsitepackages()[0])")/zz_rest.pth
	$(RAY)/bin/python -m pytest --thorough -m every_ray -W default::ResourceWarning \
		-W default::pytest.PytestUnraisableExceptionWarning $(ARGS)

chaos: $(DEV)  ## inject faults into studies for MINUTES=60, enumerate crash states; writes docs/faults.md
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),60) --outcomes chaos.jsonl
	$(BIN)/python -m tests.chaos.crashes --lengths 900 > crashes.json
	$(BIN)/python -m tests.chaos.planted
	$(BIN)/python -m tests.chaos.report chaos.jsonl crashes.json --falls-short tests/chaos/falls-short.md

lint: $(DEV)  ## format, lint and types, nothing is changed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The tools have a folder of their own: what they bring along must not decide what .venv holds.
LOCK := .ci/requirements.txt
EXTRAS := explain report cmaes text text-hub video serve private sign onnx
TOOLS := .venv-tools/bin
lock: | $(TOOLS)/python  ## write .ci/requirements.txt again: every package of every extra, pinned with its hashes
	$(TOOLS)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(TOOLS)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --no-emit-index-url \
		--python-version 3.10 \
		$(EXTRAS:%=--extra %) pyproject.toml --output-file $(LOCK)

audit: | $(TOOLS)/python  ## ask for known vulnerabilities of the pinned packages
	$(TOOLS)/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'
	$(TOOLS)/pip-audit --strict --disable-pip --require-hashes --requirement $(LOCK)

schema: $(READY)  ## write configs/schema.json and docs/config.md again, after a key of the config has changed
	$(BIN)/python -m search.config.schema

bench: $(READY)  ## every benchmark, into benchmarks/RESULTS.md; ARGS="--quick --images DIR --weights FILE"
	$(BIN)/python -m benchmarks $(ARGS)

screenshots: $(DEV)  ## pictures of the report in docs/, of the study STUDY=results/quickstart; needs chromium
	$(BIN)/python -m benchmarks.screenshots $(STUDY)

dev: $(DEV)  ## install only, with the tools for development

clean:  ## remove .venv and the tools' caches; results and data stay
	rm -rf .venv .venv-ray .venv-tools build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(TOOLS)/python:
	$(PYTHON) -m venv .venv-tools

$(READY): pyproject.toml | $(BIN)/python
	$(if $(LOCKED),$(PIP) --require-hashes -r $(LOCK))
	$(PIP) $(if $(LOCKED),--no-deps) -e .
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $(READY) $@
