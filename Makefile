# make demo | test | lint | nightly: each makes .venv on first use and reuses it afterwards.

PYTHON ?= python3
BIN := .venv/bin
DEMO_OUT ?= build/demo

.PHONY: demo test lint nightly clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/qtool demo --out $(DEMO_OUT) --force

test: .venv/installed
	$(BIN)/python -m pytest -m "not nightly"

nightly: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info
