# Verbs: demo, check, test, gpu, extras, bench, fuzz and endurance, which take their time. Each sets up the virtual environment that it needs.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
EXTRAS := .venv-extras

# Everything that a tool caches stays here, so that a read-only home is no obstacle.
export XDG_CACHE_HOME := $(abspath $(VENV))/cache
unexport PYTHONPATH

.PHONY: demo check test gpu extras bench fuzz endurance clean

demo: $(VENV)/ready
	$(RUN) -m fewstep demo

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

check: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

# the tests of one GPU; `test` runs all others, without GPUs
gpu: $(VENV)/ready
	$(RUN) -m pytest -m gpu

# the real packages of every extra, in an environment of their own, and LMDB to compare with
extras: $(EXTRAS)/ready
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m pytest -m extras

$(EXTRAS)/ready: pyproject.toml constraints-extras.txt
	$(PYTHON) -m venv $(EXTRAS)
	$(EXTRAS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-extras.txt \
		--editable ".[dev,vae,hub,datasets,tensorboard,wandb,trackio]" lmdb
	touch $@

fuzz: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz --n 20000

endurance: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN) -m tests.endurance --n 50

# EDM and SID are checkouts of the references (SiD's branch sida), for the figures beside them; BATCH is 256 for figures of GPUs
bench: $(VENV)/ready
	for name in sampling teacher; do $(RUN) -m benchmarks $$name $(EDM:%=--reference %) $(BATCH:%=--batch %) --json runs/bench/$$name.json || exit 1; done
	$(RUN) -m benchmarks distillation --memory $(SID:%=--reference %) $(BATCH:%=--batch %) --json runs/bench/distillation.json
	$(RUN) -m benchmarks compile $(BATCH:%=--batch %) --json runs/bench/compile.json
	for name in data start scaling writing contention; do $(RUN) -m benchmarks $$name --json runs/bench/$$name.json || exit 1; done
	$(RUN) -m benchmarks sampling $(EDM:%=--reference %) --batch 1 --json runs/bench/latency.json
	$(RUN) -m benchmarks inverse overhead --batch 6 --json runs/bench/inverse.json
	$(RUN) -m benchmarks evaluation pipeline $(EDM:%=--reference %) --json runs/bench/evaluation.json

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(EXTRAS) build dist .pytest_cache .ruff_cache
