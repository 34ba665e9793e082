# `make demo` and `make test` work on a machine that has nothing but Debian, Python 3.11 and a C compiler.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
TYPING := build/typing

.PHONY: install demo test lint types unit clean

install: $(STAMP)

$(STAMP): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(VENV)/bin/pip install --quiet --disable-pip-version-check setuptools wheel
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[compile,rtx,dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/intsr demo -o build/demo

test: lint types unit

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# mypy does not follow editable mappings: give it a folder of links.
types: $(STAMP)
	rm -rf $(TYPING) && mkdir -p $(TYPING)
	ln -s $(CURDIR)/core $(TYPING)/intsr
	MYPYPATH=$(TYPING) $(VENV)/bin/mypy -p intsr

unit: $(STAMP)
	$(VENV)/bin/python -m pytest

clean:
	rm -rf build/demo build/typing .mypy_cache .ruff_cache
