# Every target does its own complete set-up: a machine needs Python >= 3.11, make and a package index, nothing else.

PYTHON ?= python3
VENV   ?= .venv
RUNS   ?= runs
ARGS   ?=
BENCH  ?= decode

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: study test bench lint docs help clean

study: $(VENV)/.ready ## run the study of the starter recipe; ARGS="--recipe smoke --set a.b=c" goes to `triptych study`
	@$(BIN)/triptych study $(ARGS)

test: lint ## linter, format, types and the tests; ARGS="-k name" goes to pytest
	@echo "== tests on tiny models, a process a core"
	@OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m "not real" $(ARGS)
	@echo "== tests on the real model"
	@GOMP_SPINCOUNT=20000 $(BIN)/python -m pytest -q -m real $(ARGS)

bench: $(VENV)/.ready-bench ## this project and its peers side by side; ARGS go to `triptych bench decode`
	@mkdir -p $(RUNS)/bench
	@set -e; for name in $(BENCH); do \
	    echo "== bench $$name -> $(RUNS)/bench/$$name.json"; \
	    $(BIN)/triptych bench $$name --out $(RUNS)/bench/$$name.json $(ARGS); \
	done

lint: $(VENV)/.ready-dev ## linter, format and types alone
	@echo "== ruff check";  $(BIN)/ruff check
	@echo "== ruff format"; $(BIN)/ruff format --check
	@echo "== mypy";        $(BIN)/mypy

docs: $(VENV)/.ready-dev ## the documentation as a website in site/; ARGS go to `mkdocs build`
	@NO_MKDOCS_2_WARNING=true DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet $(ARGS)
	@echo site/index.html

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
	    printf '  make %-6s %s\n' "$$name" "$$what"; \
	done

clean: ## remove the virtual environment and everything built; runs are kept
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last: an interrupted set-up is simply done again. It is redone only when the requirements change.
$(VENV)/.ready: EXTRAS :=
$(VENV)/.ready-dev: EXTRAS := [dev]
$(VENV)/.ready-bench: EXTRAS := [bench]

$(VENV)/.ready $(VENV)/.ready-dev $(VENV)/.ready-bench: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Triptych needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	         "Install one and name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    echo "== creating $(VENV) with $$($(PYTHON) --version)"; \
	    $(PYTHON) -m venv --clear $(VENV) || { \
	        echo "'$(PYTHON) -m venv' failed: this Python came without its venv module" \
	             "(on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }; }
	@echo "== installing triptych$(EXTRAS) into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.$(EXTRAS)'
	@touch $@
