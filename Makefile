# The two commands of the README are `make demo` and `make test`; `make` alone lists all of them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
DEMO := .venv/.stamp-demo
DEV := .venv/.stamp-dev
SOURCES := $(wildcard packages/*/src)

.PHONY: help demo engines test test-slow check fix bench chaos docs reference example-jax clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=/path/to/python3.11 chooses the interpreter of .venv;"
	@echo "  TORCH_ARGS='--index-url https://download.pytorch.org/whl/cpu' chooses torch's CPU build."

demo: $(DEMO) ## train, verify, package, serve and ask a model, on this machine
	@$(BIN)/python examples/digits/demo.py

engines: $(DEV) ## install the real engines that the tests run: Ceph, Swift, RabbitMQ, PostgreSQL, Triton
	@tests/engines/install

test: $(DEV) ## run the tests, except the slow ones; with CI=true, what fails is run once more
	@$(BIN)/python -m pytest -m "not slow" $(if $(filter true,$(CI)),--reruns 1)

test-slow: $(DEV) ## run the tests that take minutes or gigabytes
	@$(BIN)/python -m pytest -m slow

check: $(DEV) ## lint, format, types, import arrows, documentation
	@echo "ruff check";   $(BIN)/ruff check .
	@echo "ruff format";  $(BIN)/ruff format --check .
	@echo "mypy";         $(BIN)/mypy $(SOURCES) tests/engines
	@echo "lint-imports"; $(BIN)/lint-imports
	@echo "docs tests";   $(BIN)/python -m pytest -q tests/docs

fix: $(DEV) ## let ruff mend what it can, and write the reference pages again
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(MAKE) --no-print-directory reference

bench: $(DEV) ## measure; Markdown and JSON go to benchmarks/results
	@mkdir -p benchmarks/results
	@for script in benchmarks/bench_*.py; do \
	    name=$$(basename "$$script" .py); echo "# $$name"; \
	    $(BIN)/python "$$script" --json "benchmarks/results/$$name.json" | tee "benchmarks/results/$$name.md"; \
	done

chaos: $(DEV) ## publish 500 models while everything is killed, and count what was lost (some 20 minutes)
	@PYTHONPATH=tests $(BIN)/python -m chaos $(CHAOS_ARGS)

docs: reference ## build the documentation into site/
	@$(BIN)/zensical build --clean

reference: $(DEV) ## write docs/reference/{errors,settings,cli}.md from the code
	@$(BIN)/python tools/reference.py

example-jax: $(DEMO) ## export and publish a JAX model, in a virtual environment of its own
	@examples/jax_onnx/run

clean: ## remove .venv and everything that was built or cached
	rm -rf .venv .venv-* site demo-output .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO): constraints.txt requirements/demo.txt tools/make-venv $(wildcard packages/*/pyproject.toml)
	@tools/make-venv demo

$(DEV): $(DEMO) requirements/dev.txt
	@tools/make-venv dev
