# `make demo` and `make test` work on a machine that has nothing but Debian, make and Python 3.11.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
TYPING := build/typing
STAGES := runtime kernels calib export engines

.PHONY: install demo test test-slow lint types unit gpu-check clean

install: $(STAMP)

$(STAMP): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(VENV)/bin/pip install --quiet --disable-pip-version-check setuptools wheel
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[compile,rtx,report,video,ray,dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/intsr demo -o build/demo

test: lint types unit

lint: $(STAMP) $(TYPING)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYTHONPATH=$(TYPING) $(VENV)/bin/lint-imports --no-cache

types: $(STAMP) $(TYPING)
	MYPYPATH=$(TYPING) $(VENV)/bin/mypy -p intsr
	MYPYPATH=$(TYPING) $(VENV)/bin/mypy integrations/comfyui/nodes.py

# mypy and import-linter do not follow editable mappings: they get a folder of links.
.PHONY: $(TYPING)
$(TYPING):
	rm -rf $@ && mkdir -p $@/intsr
	ln -s $(CURDIR)/core/* $(foreach stage,$(STAGES),$(CURDIR)/$(stage)) $@/intsr/

# Two at once: threads inside a test are one (tests/conftest.py).
unit: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not kernels"

# Everything that `make test` leaves out: long runs, and the CUDA sources, which a C++ compiler makes run on the CPU.
test-slow: $(STAMP) build/triton build/app
	command -v c++ || command -v g++ || command -v clang++ || $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt ziglang
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m "slow or kernels"

# Triton Inference Server and its clients, for tests: what these packages pin is not what we need.
build/triton:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --disable-pip-version-check "nvidia-pytriton==0.7.0" "tritonclient[grpc,http]==2.73.0" || rm -rf $@

# The window, for tests, and nothing beside it: no torch, and of Pillow the version that Gradio takes.
build/app: setup.py constraints.txt
	rm -rf $@ && $(PYTHON) -m venv $@
	grep -v "^pillow==" constraints.txt > $@/constraints.txt
	PIP_CONSTRAINT=$(CURDIR)/$@/constraints.txt $@/bin/pip install --quiet --disable-pip-version-check setuptools wheel
	$@/bin/pip install --quiet --disable-pip-version-check -c $@/constraints.txt --no-build-isolation -e ".[app]" || { rm -rf $@; exit 1; }

# On a machine with an NVIDIA GPU, with a Python that has torch for it: docs/inside/gpu.md.
gpu-check: $(TYPING)
	PYTHONPATH=$(TYPING) $(PYTHON) examples/gpu_check.py -o $${OUT:-build/gpu-check}

clean:
	rm -rf build/demo build/typing .mypy_cache .ruff_cache
