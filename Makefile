# make run | test | checks | bench | soak | env. Needs Python 3.11+, a C++ compiler and ninja; nothing else.
# Packages come from wherever the user's pip is configured to look.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
# Set in many containers. With it nothing that pip left uncompiled here ever would be, and each process would compile
# all of torch, Ray and MLflow that it imports: half of its start.
unexport PYTHONDONTWRITEBYTECODE

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# 3.11 first: the pins in constraints.txt were tested with it. Override with `make env PYTHON=…`.
PYTHON ?=
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3 python)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
FIRST_IMPORTS := import mlflow.server, ray.data, ray.train, s3fs, gcsfs, scipy.stats, sklearn.linear_model, \
  matplotlib.pyplot, transformers, pytest, hypothesis, torch._dynamo, pipelines.cli
# ninja is also a Python package, beside the other commands of the environment
WITH_BIN := PATH="$(abspath $(BIN)):$$PATH"
PYTEST := $(WITH_BIN) $(BIN)/python -m pytest
# Two workers, whole files to each, so that a module's Ray cluster or server starts once.
# None is started anew when it dies: pytest-xdist would lose tests of its file and wait for them for ever.
WORKERS ?= 2
ARGS ?=

.PHONY: help env run test soak checks format bench bench-models bench-trainer bench-collators bench-data bench-duplicates \
  bench-reader bench-placement bench-checkpoints bench-fits bench-endurance bench-peers peers pins clean

help:
	@echo "make env      the environment in $(VENV): once, and again when pyproject.toml or constraints.txt change"
	@echo "make run      env, then triptych run quickstart (corpus, tokenizer, pretraining, fine-tuning, report)"
	@echo "make test     env, then all tests but the soak ones; ARGS=\"-k name\" goes to pytest"
	@echo "make soak     env, then the tests that take minutes"
	@echo "make checks   env, then ruff, format, types"
	@echo "make bench    env, then the benchmarks of the machinery"
	@echo "make bench-placement   memory and step time of placements beside what plan predicts"
	@echo "make bench-models      training steps beside Hugging Face's models"
	@echo "make bench-trainer     tokens/s end to end beside Hugging Face's Trainer on DeepSpeed; ARGS=\"--start-up\""
	@echo "make bench-collators   batches beside Hugging Face's collators, and what padding costs"
	@echo "make bench-data        corpus to training rows beside run_mlm, Megatron-LM's way, datatrove; ARGS=\"--text FOLDER\""
	@echo "make bench-duplicates  MinHash beside datasketch; ARGS=\"--text articles.jsonl.gz\""
	@echo "make bench-reader      the i-th sequence of an epoch: microseconds"
	@echo "make bench-checkpoints how long training stands still for checkpoints"
	@echo "make bench-fits        scaling-law fits beside SciPy's loops; ARGS=\"--data FOLDER\" for the published files"
	@echo "make bench-endurance   pretraining under random kills; ARGS=\"--corpus articles.jsonl.gz --minutes 60\""
	@echo "make bench-peers   the same in DVC and Metaflow, in an environment of their own (.venv-bench)"
	@echo "make format   let ruff put the code in order"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@python=""; \
	for candidate in $(PYTHONS); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11 or newer among: $(PYTHONS). Install one, or name it: make env PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$python lacks the venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ] || ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "Making $(VENV) with $$("$$python" --version)"; "$$python" -m venv --clear $(VENV); \
	fi
	@# An old pip resolves and unpacks this many pins in twice the time.
	@$(PIP) --upgrade 'pip>=25'
	@# Not compiled by pip, which takes every file of every package, one after the other: the imports below
	@# compile what is used, beside DeepSpeed.
	$(PIP) --no-compile -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c '$(FIRST_IMPORTS)' >/dev/null 2>&1 & imports=$$!; \
	if ! $(WITH_BIN) $(BIN)/python -c 'from cluster.deepspeed import warm_up; warm_up()' >$(VENV)/warm-up.log 2>&1; then \
	  tail -n 5 $(VENV)/warm-up.log >&2; \
	  echo "DeepSpeed does not import: the training stages would fail." >&2; \
	  echo "C++ compiler: $$(command -v g++ || echo missing), ninja: $$(command -v ninja || echo 'from pip'). Full log: $(VENV)/warm-up.log" >&2; \
	  exit 1; \
	fi; \
	wait $$imports || true
	@touch $@

run: env
	$(WITH_BIN) $(BIN)/triptych run quickstart $(ARGS)

test: env
	$(PYTEST) -n $(WORKERS) --dist loadfile --max-worker-restart 0 -m "not soak" $(ARGS)

soak: env
	$(PYTEST) -m soak --timeout 3600 $(ARGS)

checks: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env
	$(BIN)/python -m benchmarks.machinery $(ARGS)

bench-placement: env
	$(BIN)/python -m benchmarks.placement $(ARGS)

bench-models: env
	$(BIN)/python -m benchmarks.models $(ARGS)

bench-trainer: env
	[ -d .venv-trainer/accelerate ] || $(PIP) --no-deps --target .venv-trainer accelerate==1.15.0
	$(BIN)/python -m benchmarks.trainer $(ARGS)

bench-collators: env
	$(BIN)/python -m benchmarks.collators $(ARGS)

bench-data: peers
	$(BIN)/python -m benchmarks.data $(ARGS)

bench-duplicates: peers
	$(BIN)/python -m benchmarks.duplicates $(ARGS)

bench-reader: env
	$(BIN)/python -m benchmarks.reader $(ARGS)

bench-checkpoints: env
	$(BIN)/python -m benchmarks.checkpoints $(ARGS)

bench-fits: env
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fits $(ARGS)

bench-endurance: env
	$(WITH_BIN) $(BIN)/python -m benchmarks.endurance $(ARGS)

bench-peers: peers
	$(BIN)/python -m benchmarks.peers $(ARGS)

# What is measured beside us, in an environment of its own.
peers: env
	[ -x .venv-bench/bin/python ] || $(BIN)/python -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25'
	.venv-bench/bin/python -m pip install --quiet -r benchmarks/peers/requirements.txt

# After an upgrade by hand in $(VENV): write the pins anew.
pins:
	@{ head -n 2 constraints.txt; \
	   $(BIN)/python -m pip freeze --exclude-editable; \
	   $(BIN)/python -c 'import importlib.metadata as m; print("setuptools==" + m.version("setuptools"))'; \
	 } | grep -v '^-e \|^triptych' | sed -E 's/^([^#=]+==[^+]+)\+.*/\1/' > constraints.new
	@(head -n 2 constraints.new; tail -n +3 constraints.new | LC_ALL=C sort -fu) > constraints.txt; rm constraints.new

clean:
	rm -rf $(VENV) .venv-trainer .mypy_cache .ruff_cache .pytest_cache .hypothesis
