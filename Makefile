# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: demo test check serve bench profile install install-dev system clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

demo: $(VENV)/.installed
	$(BIN)/vitfit demo

test: $(VENV)/.installed-dev system
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadgroup

serve: $(VENV)/.installed
	$(BIN)/vitfit serve

bench: $(VENV)/.installed
	@for script in $(filter-out benchmarks/common.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script $(BENCH_FLAGS) || exit 1; done

profile: $(VENV)/.installed
	$(BIN)/vitfit profile $(or $(ARCH),deit-t)

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# Tests read the pages that users read, in Debian's chromium; without root or apt those tests say that they are skipped.
system:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; fi

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
