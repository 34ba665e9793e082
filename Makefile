# `make demo` and `make test` work on a machine that has nothing but Debian, make and Python 3.11.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
STAMP_TRITON := $(VENV)/.installed-triton
TYPING := build/typing
STAGES := runtime kernels calib export engines

.PHONY: install demo test lint types unit clean

install: $(STAMP)

$(STAMP): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(VENV)/bin/pip install --quiet --disable-pip-version-check setuptools wheel
	# The TensorRT-RTX target compiles a small C shim: bring a compiler where the machine has none.
	command -v cc >/dev/null || $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt ziglang
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[compile,rtx,report,dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/intsr demo -o build/demo

test: lint types unit

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# mypy does not follow editable mappings: give it a folder of links.
types: $(STAMP)
	rm -rf $(TYPING) && mkdir -p $(TYPING)/intsr
	ln -s $(CURDIR)/core/* $(foreach stage,$(STAGES),$(CURDIR)/$(stage)) $(TYPING)/intsr/
	MYPYPATH=$(TYPING) $(VENV)/bin/mypy -p intsr

# Two at once, a file each: threads inside a test are one (tests/conftest.py).
unit: $(STAMP) $(STAMP_TRITON)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

# Interprets the Triton kernel. Not everywhere to be had, and large: the test says so where it is missing.
$(STAMP_TRITON): $(STAMP)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --only-binary :all: triton || true
	touch $@

clean:
	rm -rf build/demo build/typing .mypy_cache .ruff_cache
