# Everything below needs only Python 3.11 or newer with venv, git and make.
# `make demo PYTHON=python3.12` picks the interpreter, `INSTALLER=pip` the plain installer.

PYTHON ?= python3
INSTALLER ?= uv
# One process a core; a file stays in one process, where its fixtures are made once.
PYTEST_FLAGS ?= -q -n auto --dist loadfile
BIN := .venv/bin
# Where no bytecode is written, every one of a test run's processes compiles JAX again.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/bytecode
# An sdist is without .ci.
CODE := vdm tests experiments benchmarks notebooks docs $(wildcard .ci)
NOTEBOOKS := $(wildcard notebooks/[0-9]*.py)

DEMO_DIR := runs/demo
DEMO_CONFIG := experiments/digits.py
# A smaller network for fewer steps than the config itself asks for, and samples on the way by a
# sampler that takes little of the time.
DEMO_FLAGS := --config.train.num_steps=4000 --config.train.batch_size=16 \
	--config.train.log_every=250 --config.model.network.num_blocks=1 \
	--config.model.network.attention=none --config.model.network.dropout=0.0 \
	--config.train.sample_every=1000 --config.sample.sampler=dpmpp_2m --config.sample.num_steps=20

.DEFAULT_GOAL := help
.PHONY: help demo test test-all notebooks docs pictures check format package clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.runtime  ## train on handwritten digits, evaluate in bits per dimension, draw samples, report
	@$(BIN)/vdm train --config=$(DEMO_CONFIG) --workdir=$(DEMO_DIR) $(DEMO_FLAGS)
	@$(BIN)/vdm evaluate --workdir=$(DEMO_DIR) --split=test
	@$(BIN)/vdm sample --workdir=$(DEMO_DIR) --num=64 --sampler=ancestral --steps=250 \
	  --out=$(DEMO_DIR)/samples.png
	@$(BIN)/vdm report --workdir=$(DEMO_DIR)
	@echo
	@echo "The run as one page:     $(DEMO_DIR)/report.html"
	@echo "Test bits per dimension: $(DEMO_DIR)/evaluation.json"
	@echo "Samples:                 $(DEMO_DIR)/samples.png"
	@echo "Checkpoints, metrics:    $(DEMO_DIR)/"

test: .venv/.test  ## run the tests
	@$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-all: .venv/.test  ## run the tests, those marked long too
	@$(BIN)/python -m pytest $(PYTEST_FLAGS) --all

notebooks: $(NOTEBOOKS:notebooks/%.py=docs/notebooks/%.ipynb)  ## run the notebooks, into docs/notebooks/

docs: notebooks  ## build the documentation from the docstrings, guides and notebooks: build/docs/
	@$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo "Documentation: build/docs/index.html"

pictures: docs/notebooks/01_swirl.ipynb  ## take the README's picture from the notebook that makes it
	@$(BIN)/python notebooks/pictures.py 01_swirl

check: .venv/.test  ## check format, lint, types and the direction of imports
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/.test  ## format the code and repair what the linter can repair
	@$(BIN)/ruff check --fix-only --quiet $(CODE)
	@$(BIN)/ruff format $(CODE)

# Built from the sdist, so that a wheel shows both to be whole; run outside the source tree.
package: .venv/.test  ## build the wheel and the sdist, and try the wheel in an empty environment
	@rm -rf dist build/package
	@$(BIN)/python -m build --quiet --outdir dist
	@$(BIN)/python -m venv build/package
	@$(call install,build/package/bin,dist/*.whl)
	@$(BIN)/python .ci/package.py dist build/package
	@rm -rf build/package

clean:  ## remove .venv, caches and builds; runs/ is kept
	@rm -rf .venv build dist docs/notebooks .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find vdm tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +

# A notebook is run again when it, the runner or the library has changed.
docs/notebooks/%.ipynb: notebooks/%.py notebooks/run.py $(shell find vdm -name '*.py') .venv/.docs
	@$(BIN)/python notebooks/run.py $< $@ --timeout=600

# Installing. A stamp in .venv makes a second call free; a change of pyproject.toml or of
# constraints/ installs again. The versions are the tested ones: py311.txt for Python 3.11,
# py312.txt for 3.12 and newer (the same versions resolve on 3.13).
#
# uv is several times faster than pip but knows nothing of pip's configuration: where it
# fails (a private registry, say), pip does the work.

.venv/.created:
	@for python in $(PYTHON) python3.13 python3.12 python3.11; do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Creating .venv with $$($$python --version)"; \
	    $$python -m venv .venv && touch $@; exit; \
	  fi; \
	done; \
	echo "No Python 3.11 or newer with venv found: install one, or name it by make PYTHON=..." >&2; \
	exit 1

.venv/.runtime: .venv/.created pyproject.toml $(wildcard constraints/*.txt)
	@$(call install,$(BIN),-e .)
	@touch $@

.venv/.test: .venv/.created pyproject.toml $(wildcard constraints/*.txt)
	@$(call install,$(BIN),-e '.[test]')
	@$(call compiler,$(BIN)) || echo "No compiler for TPUs (libtpu): its tests are skipped"
	@touch .venv/.runtime $@

.venv/.docs: .venv/.created pyproject.toml $(wildcard constraints/*.txt)
	@$(call install,$(BIN),-e '.[notebooks$(comma)docs]')
	@touch .venv/.runtime $@

comma := ,
# $(call install,FOLDER,WHAT): for the Python of a folder of programs.
define install
constraints=constraints/$$($(1)/python -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt; \
echo "Installing with the versions in $$constraints"; \
if [ "$(INSTALLER)" = uv ]; then \
  $(call pip,$(BIN)) uv && $(call uv,$(1)) -c $$constraints $(2) && exit; \
  echo "uv could not install: going on with pip"; \
fi; \
$(call pip,$(1)) --prefer-binary -c $$constraints $(2)
endef
# Beside the packages, not among them, where JAX would look for a TPU in every process.
define compiler
rm -rf .venv/aot; \
constraints=constraints/$$($(1)/python -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt; \
$(call pip,$(1)) --no-deps --target=.venv/aot -c $$constraints libtpu
endef
pip = $(1)/python -m pip install --quiet --no-compile --progress-bar off --disable-pip-version-check
uv = UV_HTTP_TIMEOUT=20 UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --no-config --python $(1)/python
