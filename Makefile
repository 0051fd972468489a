# make demo | test | test-relay | lint | nightly: each makes .venv on first use and reuses it afterwards.

PYTHON ?= python3
BIN := .venv/bin
# A process a core, each with one thread: threads of several processes wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
DEMO_OUT ?= build/demo

.PHONY: demo test test-relay lint nightly clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/qtool demo --out $(DEMO_OUT) --force

test: .venv/installed
	$(PYTEST) -m "not nightly"

# TVM with Relay is in an environment of its own, 650 MB in the cache folder.
test-relay: .venv/installed
	$(BIN)/qtool setup relay
	$(PYTEST) -m "relay and not nightly"

nightly: .venv/installed
	$(PYTEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info
