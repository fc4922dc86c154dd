# Everything runs in its own virtual environment, $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
comma := ,

.DEFAULT_GOAL := help
.PHONY: help demo test check golden matrix bench soak lock sbom dist

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# $(call told,WHAT,COMMAND): say what, run it, and every 20 seconds how much is there.
define told
@echo "$(1)"; \
(while sleep 20 >/dev/null 2>&1; do echo "  ... $$(du -sm $(VENV) | cut -f1) MB so far"; done) & \
beat=$$!; $(2); code=$$?; kill $$beat 2>/dev/null; exit $$code
endef

# Exact versions, of tests/constraints.txt; torch and torchvision first, which are most of it. The newest pip
# unpacks in two thirds of the time of Python 3.11's; bytecode is compiled on every core, where pip compiles a file at a time. One
# file of torch's is for a newer Python and does not compile, which pip ignores too.
$(VENV)/installed: pyproject.toml tests/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)' || { \
	echo "make: Python 3.11 or newer is needed (got $$($(PYTHON) --version)); name one, as in: make demo PYTHON=python3.12"; exit 1; }
	@echo "installing diffopt into $(VENV): about 8 GB, and a few minutes with a fast network"
	$(call told,1 of 4: a virtual environment with $$($(PYTHON) --version) and the newest pip,$(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet --upgrade pip)
	$(call told,2 of 4: $$(grep -E '^torch(vision)?==' tests/constraints.txt | paste -s -d ' ' | sed 's/==/ /g; s/ torchvision/ and torchvision/'): most of it,$(BIN)/pip install --quiet --no-compile --constraint tests/constraints.txt torch torchvision)
	$(call told,3 of 4: diffopt$(comma) with the engine builder and what tests need,$(BIN)/pip install --quiet --no-compile --constraint tests/constraints.txt --editable '.[tensorrt-rtx$(comma)dev]')
	$(call told,4 of 4: bytecode of all that,$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true)
	@touch $@

demo: $(VENV)/installed  ## install, run the quickstart, print where its report is
	@echo "running diffopt +recipe=quickstart: a line for each step, one to three minutes on 2 cores"
	@$(BIN)/diffopt +recipe=quickstart
	@echo "the report is a page for a browser. To go on: source $(BIN)/activate, then diffopt ls"

test: $(VENV)/installed  ## install, run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

check: $(VENV)/installed  ## what CI runs: format, lint, types, licences, advisories, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tests/supply_chain.py licences
	$(BIN)/python tests/supply_chain.py advisories
	$(MAKE) test

golden: $(VENV)/installed  ## write the recipes' fingerprints again, after a change of the key that is meant
	$(BIN)/python -m pytest -q -n 0 -m '' tests/test_golden.py --golden

matrix: $(VENV)/installed  ## every family in every format through the whole chain, and what else is slow; writes the manual's table
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup -m '' --matrix

bench: $(VENV)/installed  ## full-size FLUX.1-dev and SDXL with random weights, observed, quantized, exported and swept here; wants a GPU
	$(BIN)/python tests/bench_observe.py sdxl flux_dev
	$(BIN)/python tests/bench_full_size.py outputs/bench flux_dev:int8_sq flux_dev:fp8 flux_dev:nvfp4 sdxl:int8_sq sdxl:fp8 sdxl:nvfp4
	for m in sdxl flux_dev; do $(BIN)/python tests/bench_sweep.py outputs/bench/$$m --one-alpha --grid small large -- model=$$m model.weights=random calib=images calib.n_steps=4 || exit 1; done

SEED ?= 0
soak: $(VENV)/installed  ## 300 corruptions of a store, 10,000 random command lines and other properties, 500 kills, 8 processes on one store, every embedded recipe twice, Slurm, Ray; hours; SEED=N
	DIFFOPT_SEED=$(SEED) DIFFOPT_CORRUPTIONS=300 DIFFOPT_EXAMPLES=200 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --timeout 0 tests/test_corruption.py tests/test_store_machine.py tests/test_json_fuzz.py tests/test_fingerprint_properties.py
	$(BIN)/python tests/soak_lines.py --seed $(SEED) --lines 10000
	$(BIN)/python tests/soak_store.py --seed $(SEED) --kills 500 --processes 8 --minutes 10
	$(BIN)/python tests/soak_fresh.py
	$(BIN)/python tests/soak_slurm.py
	$(BIN)/python tests/soak_ray.py

lock: $(VENV)/installed  ## write tests/constraints.txt of what is installed, after a change of pyproject.toml: pip install what changed first
	$(BIN)/python tests/supply_chain.py lock

sbom: $(VENV)/installed  ## write dist/diffopt.cdx.json, the CycloneDX list of what is installed
	@mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/diffopt.cdx.json $(BIN)/python

dist: $(VENV)/installed  ## build the wheel and the sdist twice and compare their bytes
	$(BIN)/python tests/supply_chain.py build dist
