# Every target sets up .venv by itself, once; a changed pyproject.toml sets it up again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test check docs dist studies-smoke soak bench results studies lint format
.NOTPARALLEL:

help: ## Say what there is.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-22s%s\n", $$1, $$2}'

demo: $(VENV)/.ready-demo ## Adapt a frozen model to the documentation of Python packages, into ./demo.
	$(BIN)/querykey demo --out demo

test: $(VENV)/.ready ## Run the tests, a worker a core.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

check: lint test ## All that CI asks: format, lint, types, layers, tests.

studies-smoke: $(VENV)/.ready ## Run every study on a few images; `make test` does it too.
	$(BIN)/python -m pytest -q tests/studies/test_studies.py -k runs_to_its_verdicts

soak: $(VENV)/.ready ## Kill, starve, fuzz and fit to noise for up to an hour.
	$(BIN)/python -m pytest -q tests/soak/soak_*.py

bench: $(VENV)/.ready-bench ## Measure speed and memory beside the peers.
	$(BIN)/python benchmarks/run.py

results: $(VENV)/.ready-results ## Run the studies of docs/results.md and write it; continues where it stopped.
	$(BIN)/python scripts/studies.py results

studies: $(VENV)/.ready-results ## Run the papers' studies and write studies/README.md; continues where it stopped.
	$(BIN)/python scripts/studies.py papers

lint: $(VENV)/.ready ## Check format, lint, types and layers.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports

docs: $(VENV)/.ready $(VENV)/.ready-docs ## Build the site into build/site; run its code blocks and the notebooks.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/pages/all_pages.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --nbmake --rootdir examples/notebooks -c /dev/null examples/notebooks

dist: $(VENV)/.ready-release ## Build wheel and sdist, check them, and use the wheel in empty environments.
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python scripts/check_wheel.py dist

format: $(VENV)/.ready ## Rewrite the code in the house's format.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# One stamp for each extra, all in the same .venv: make demo does not wait for the linters.
$(VENV)/.ready-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@
