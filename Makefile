# Each target alone, on a machine with Python ≥ 3.11 and make, makes the environment it needs and does its job.
#
#   make demo      the main job: about a minute and a half on two cores, beyond downloads
#   make test      all tests; offline once the environment is installed
#   make check     lint, format, types, import rules
#   make docs      the documentation as a site, build/site/index.html; a link that leads nowhere is an error
#   make performance   what a measurement costs, beside other packages: at most half an hour on two idle cores
#
# TORCH=... chooses the build of torch, as arguments of `pip install` (README.md, "Which torch").

PYTHON ?= python3
TORCH ?= -r requirements/torch.txt
VENV := .venv
# Modules, not the scripts beside python: their first line names its path, which may be too long or hold a space.
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip install --quiet --disable-pip-version-check
LINT_IMPORTS := $(VENV)/bin/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
INSTALLED := $(VENV)/.installed

# Packages that are compared with, in an environment of their own: none of them may replace torch.
PEERS := .venv-peers
PEERS_INSTALLED := $(PEERS)/.installed

# What makes the site reads the sources, and imports none of them.
SITE := .venv-docs
SITE_INSTALLED := $(SITE)/.installed

.PHONY: demo test check format performance docs clean

demo: $(INSTALLED)
	$(RUN) stepscope demo

test: $(INSTALLED)
	$(RUN) pytest -n auto --dist worksteal --durations 12

check: $(INSTALLED)
	$(RUN) ruff check src tests examples benchmarks docs/site docs/pictures
	$(RUN) ruff format --check src tests examples benchmarks docs/site docs/pictures
	$(RUN) mypy
	$(LINT_IMPORTS)

format: $(INSTALLED)
	$(RUN) ruff check --fix src tests examples benchmarks docs/site docs/pictures
	$(RUN) ruff format src tests examples benchmarks docs/site docs/pictures

performance: $(INSTALLED) $(PEERS_INSTALLED)
	$(PEERS)/bin/python benchmarks/measure.py
	$(VENV)/bin/python benchmarks/tables.py

docs: $(SITE_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/python -m mkdocs build --quiet --strict
	@echo "build/site/index.html"

$(SITE_INSTALLED): docs/site/requirements.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --disable-pip-version-check -r docs/site/requirements.txt
	@touch $@

$(PEERS_INSTALLED): requirements/torch.txt benchmarks/requirements-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet $(TORCH)
	$(PEERS)/bin/python -m pip install --quiet --no-deps -r benchmarks/requirements-peers.txt
	@touch $@

$(INSTALLED): pyproject.toml requirements/torch.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stepscope needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --no-deps --require-hashes -r requirements/dev.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) $(SITE) build dist runs
