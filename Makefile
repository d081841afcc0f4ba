# Every line can be typed by hand; `make` only saves the typing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXAMPLES := $(sort $(wildcard examples/*.py))

.PHONY: install demo test test-all lint types doctests docs figures examples-quick bench torture soak clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 (Debian: apt-get install python3 python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, this is $$($(PYTHON) -V): install it and run make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "the venv module is missing: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: install
	$(BIN)/georeg-diffusion train

test: install
	$(BIN)/python -m pytest -m "not slow" -n 2 -q tests benchmarks --benchmark-disable

test-all: install
	$(BIN)/python -m pytest -q tests benchmarks --benchmark-disable

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

doctests: install
	$(BIN)/python -m pytest -q --doctest-modules georeg georeg_diffusion

docs: install
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

figures: install
	$(BIN)/python docs/figures/concepts.py
	for file in $(EXAMPLES); do \
	    $(BIN)/python $$file --output-dir outputs/gallery && \
	    cp outputs/gallery/$$(basename $$file .py | cut -c 4-).png docs/images/gallery || exit 1; \
	done

examples-quick: install
	for file in $(EXAMPLES); do echo "$$file --quick"; $(BIN)/python $$file --quick --output-dir outputs/quick || exit 1; done
	$(BIN)/jupyter-execute examples/*.ipynb

torture: install
	$(BIN)/python benchmarks/torture.py --kills 20

soak: install
	$(BIN)/python benchmarks/soak.py --steps 500

bench: install
	@mkdir -p outputs
	$(BIN)/python -m pytest benchmarks -m "not cuda" --benchmark-only --benchmark-max-time=0.3 --benchmark-quiet -q --benchmark-json=outputs/benchmarks.json
	$(BIN)/python -m benchmarks.report outputs/benchmarks.json

bench-gpu: install
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make bench-gpu: torch sees no CUDA device; make bench runs without one")'
	@mkdir -p outputs
	$(BIN)/python -m pytest benchmarks -m cuda --benchmark-only --benchmark-max-time=0.3 --benchmark-quiet -q --benchmark-json=outputs/benchmarks-gpu.json
	$(BIN)/python -m benchmarks.report outputs/benchmarks-gpu.json --name cuda

clean:
	rm -rf $(VENV) docs/_build build dist
