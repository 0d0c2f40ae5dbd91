# Verbs: demo, check, test, and fuzz, which takes its time. Each sets up the virtual environment that it needs.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# Everything that a tool caches stays here, so that a read-only home is no obstacle.
export XDG_CACHE_HOME := $(abspath $(VENV))/cache
unexport PYTHONPATH

.PHONY: demo check test fuzz clean

demo: $(VENV)/ready
	$(RUN) -m fewstep demo

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

check: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

fuzz: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz --n 20000

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
