# make demo   set up, train a small grid of detectors on a drawn data set and compare them (2 CPU cores are enough)
# make test   set up, lint, and run all tests except the slow ones, two at a time (2 CPU cores are enough)
# make test-slow  run the slow tests: Slurm, kills at random times, a browser, compilers, benchmarks
# make stress kill small runs fifty times and check that nothing is lost (about 15 minutes)
# make bench  run every benchmark beside its alternatives, on one thread, and print all ratios (about 15 minutes)
# make setup  only create the virtual environment in .venv

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-slow lint stress bench setup
BENCHMARKS := evaluation postprocess loss data_pipeline training_step scaling gpu
.DEFAULT_GOAL := demo

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is $$($(PYTHON) -V); 3.11 or newer is needed (make PYTHON=python3.12 ...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --progress-bar on --editable .
	@touch $@

# Packages that only the tests need; training does not.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install --progress-bar on --editable '.[dev]'
	@touch $@

demo: setup
	$(RUN) -m detection.sample datasets/shapes --style easy
	$(RUN) -m ablation.grid run configs/grid_quickstart.yaml
	$(RUN) -m ablation.grid table configs/grid_quickstart.yaml --format html
	$(RUN) -m ablation.grid table configs/grid_quickstart.yaml

# A crashed worker ends the test run, because a new one would not report which test crashed it.
PYTEST := $(RUN) -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0 --durations 15

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow --ignore tests/test_sbatch.py
	$(RUN) -m pytest --durations 15 -m slow tests/test_sbatch.py  # ranks and loaders use both cores

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# One thread on both sides of a comparison.
bench: setup
	@for name in $(BENCHMARKS); do OMP_NUM_THREADS=1 $(RUN) -m benchmarks.$$name || failed="$$failed $$name"; done; \
		echo; $(RUN) -m benchmarks.comparison; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

stress: setup
	$(RUN) -m benchmarks.stress
