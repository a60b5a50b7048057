# `make demo` and `make test` do all of their set-up, in .venv; the second run is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo test test-camera lint fuzz clean

demo: $(VENV)/.ready
	$(BIN)/pipnet-edge detector
	$(BIN)/pipnet-edge demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2

# A V4L2 camera in a small virtual machine. Debian on x86-64; fetches a kernel and qemu.
test-camera: $(VENV)/.ready
	$(BIN)/python -m pytest tests/camera

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An hour on two cores; what it finds lies in fuzz-findings.
fuzz: $(VENV)/.ready
	rm -rf fuzz-findings
	$(BIN)/python -m tests.fuzz --seconds 3600 --jobs 2 --cover 10 -o fuzz-findings

# torch first: its CPU build where the package index has one under that name, else what the index offers.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) --version) is too old: Python 3.11 or newer is needed (make PYTHON=python3.12)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "torch==$(TORCH)+cpu" 2>/dev/null || $(BIN)/pip install -q "torch==$(TORCH)"
	$(BIN)/pip install -q -c constraints.txt -e ".[convert,test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
