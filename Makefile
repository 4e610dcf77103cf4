# make demo   a run on the screen        make check   what CI runs
# make test   the tests                  make bench   measure this machine
# make soak   faults at full speed for a minute, each event checked; takes up to 20 GB of TMPDIR meanwhile

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard src/phloem/kernel/*.cpp src/phloem/kernel/*.hpp)

.PHONY: demo test soak check bench lint types imports sanitize clean

demo: $(VENV)/.installed
	$(BIN)/phloem demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest

soak: $(VENV)/.installed
	PHLOEM_SOAK_S=60 $(BIN)/python -m pytest -s tests/flow/test_many_faults.py

check: lint types imports test sanitize

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

imports: $(VENV)/.installed
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python bench/evb.py

# The kernel's tests against a kernel built with the address and undefined-behaviour sanitizers.
sanitize: $(VENV)/.installed
	sh tools/sanitized-tests.sh $(BIN)/python

$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "phloem needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sh tools/install.sh $(BIN)/python
	touch $@

clean:
	rm -rf $(VENV) build
