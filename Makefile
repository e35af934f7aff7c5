# One command for each need; each of them also works first, in a fresh clone. Everything that they make is in folders that
# git ignores: .venv (versions pinned by constraints.txt), .venv-bench, .cache (the collector and Jaeger of the tests).
#
#   make PYTHON=/path/to/python3 ...   another Python (3.11 or newer) for the environment
#   make test ARGS='-k sse -x'         arguments for pytest; -n 0 runs the tests in one process, for a debugger

SHELL := /bin/bash
PYTHON ?= python3
ARGS ?=
PYTEST := -m pytest --numprocesses auto --dist worksteal

VENV := .venv
BENCH_VENV := .venv-bench
PY := $(VENV)/bin/python
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help demo test test-matrix unit lint types bench bench-writer clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    see it work: a small chat application against a local provider, and what was recorded of it"
	@echo "make test    all tests, with a real collector and a real Jaeger and PostgreSQL (the first build takes minutes)"
	@echo "make test-matrix  the SDKs' tests with older SDKs, too, and with every Python from 3.11 to 3.13 that is found"
	@echo "make unit    the tests that open no sockets"
	@echo "make lint    ruff: rules and format"
	@echo "make types   mypy, strict"
	@echo "make bench   what instrumentation costs, compared with others"
	@echo "make bench-writer  how many attempts a second the tables take, and how soon they are there"
	@echo "make clean   removes environments and caches"

demo: $(VENV)/.demo
	@$(VENV)/bin/otel-chatdebug demo

test: $(VENV)/.dev
	@$(PY) -m tests.support.backends
	@$(PY) -m tests.support.browser
	@status=0; \
	$(PY) -m tests.support.environments || status=$$?; \
	$(PY) $(PYTEST) $(ARGS) || status=$$?; \
	exit $$status

test-matrix: $(VENV)/.dev
	@$(PY) -m tests.support.environments --matrix $(ARGS)

unit: $(VENV)/.dev
	$(PY) $(PYTEST) tests/unit $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

bench: $(BENCH_VENV)/.bench
	@$(BENCH_VENV)/bin/python -m tests.support.backends
	$(BENCH_VENV)/bin/python -m benchmarks.overhead $(ARGS)

bench-writer: $(VENV)/.dev
	$(PY) -m benchmarks.writer $(ARGS)

clean:
	rm -rf $(VENV) $(BENCH_VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environments. A stamp in each says what is installed.

$(VENV)/.created $(BENCH_VENV)/.created:
	@python=; for candidate in "$(PYTHON)" python3.13 python3.12 python3.11; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	"$$python" -m venv --clear $(@D)
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing into $(VENV)"
	@$(PY) $(INSTALL) '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing into $(VENV)"
	@$(PY) $(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.demo

$(BENCH_VENV)/.bench: $(BENCH_VENV)/.created pyproject.toml constraints.txt
	@echo "Installing into $(BENCH_VENV)"
	@$(BENCH_VENV)/bin/python $(INSTALL) '.[bench]'
	@touch $@
