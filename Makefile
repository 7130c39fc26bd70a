# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: demo test check audit serve bench profile profile-gpu install install-dev system clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A worker that dies fails the run at once: another one in its place leaves the last tests of both waiting for ever.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0
BENCH_PARTS := benchmarks/common.py benchmarks/torch_pruning_ways.py

demo: $(VENV)/.installed
	$(BIN)/vitfit demo

test: $(VENV)/.installed-dev system
	$(PYTEST)

check: $(VENV)/.installed-dev audit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

# Known vulnerabilities of what is pinned. Asks the package index; it names what it could not ask about.
audit: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[audit]'
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

serve: $(VENV)/.installed
	$(BIN)/vitfit serve

bench: $(VENV)/.installed
	@for script in $(filter-out $(BENCH_PARTS),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script $(BENCH_FLAGS) || exit 1; done

profile: $(VENV)/.installed
	$(BIN)/vitfit profile $(or $(ARCH),deit-t)

# Tables of this machine's GPU at batch 256, as PyTorch runs it and compiled, each validated on whole models at once.
# As many points as it takes for a held-out error of 2 %; killed, it goes on where it was. Few models are compiled, for one
# with a shape of its own in every block takes a minute.
profile-gpu: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cuda]'
	$(BIN)/vitfit profile --device cuda --runtime eager --dtype amp --batch 256 --points auto --error 0.02 --validate 20
	$(BIN)/vitfit profile --device cuda --runtime compile --dtype amp --batch 256 --points auto --error 0.02 --validate 3

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# Tests read the pages that users read, in Debian's chromium, share studies on a PostgreSQL that they start, and type what the
# docs say to curl; without root or apt those tests say that they are skipped.
system:
	@if { ! command -v chromium || ! command -v curl || ! ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1 \
		&& command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium curl fonts-dejavu-core postgresql >/dev/null; fi

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
