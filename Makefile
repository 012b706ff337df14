# `make demo`, `make docs` and `make test` need Python >= 3.11 and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := $(addprefix -e ./,. $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml)))
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)

.PHONY: demo docs test test-all test-packages clean

demo: .venv/installed
	$(BIN)/reidcore run examples/quickstart.toml --output runs/demo-$$(date +%Y%m%d-%H%M%S)

# pages that work from a folder, without a server: open site/index.html
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

# the tests' tensors are small: a second thread costs more than it gives
test test-packages test-all: export OMP_NUM_THREADS = 1

test: .venv/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# wheels of core and plugins, each tested in an environment of its own
test-packages: .venv/tools
	$(BIN)/python tests/packages.py

test-all: .venv/tools
	$(BIN)/python -m pytest

# one resolve for core and plugins, so that torch and torchvision fit each other
.venv/installed: $(PROJECTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "reidcore needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(PACKAGES)
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

.venv/tools: .venv/installed
	$(BIN)/python -m pip install --quiet --group dev --group docs
	touch $@

clean:
	rm -rf .venv site
