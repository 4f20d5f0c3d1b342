# What an author or a learner types; `make help` lists it. Every target needs only python3 and sets up .venv by itself.
SHELL  := /bin/sh
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BEGUN  := $(VENV)/.begun

# Where another program keeps a core busy, OpenMP threads that spin while they wait make small networks tens of times slower
export OMP_WAIT_POLICY ?= PASSIVE

# JupyterLab opens no browser where there is no screen. More options: make lab LAB_FLAGS='--port 9999'
NBS       ?= nbs
LAB_FLAGS ?=
HEADLESS  := $(shell [ "$$(uname)" = Darwin ] || [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || echo --no-browser)
AS_ROOT   := $(shell [ "$$(id -u)" != 0 ] || echo --allow-root)

.DEFAULT_GOAL := help
.PHONY: help lab test train docs bench weights export outputs clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

# Set up again only when a file that decides it has changed. A first set-up that was interrupted starts afresh.
$(READY): settings.ini constraints.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed. Type: make $(MAKECMDGOALS) PYTHON=python3.11")'
	@if [ -e $(BEGUN) ]; then echo "The first set-up was interrupted: starting afresh."; rm -rf $(VENV); fi
	@if [ ! -e $(BIN)/python ]; then mkdir -p $(VENV) && touch $(BEGUN); fi
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 8 GB, once."
	@[ -t 1 ] || quiet=--quiet; $(BIN)/python -m pip install $$quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@$(BIN)/jupyter labextension disable --level=sys_prefix @jupyterlab/apputils-extension:announcements 2>/dev/null   # JupyterLab asks nothing
	@rm -f $(BEGUN) && touch $(READY)

lab: $(READY) ## open JupyterLab on the course (prints the address)
	$(BIN)/jupyter lab $(HEADLESS) $(AS_ROOT) --notebook-dir='$(NBS)' --LabApp.default_url=/lab/tree/index.ipynb $(LAB_FLAGS)

test: $(READY) ## run every notebook and every test, with the network closed; TESTS='--flags slow' adds options
	$(BIN)/python -m pytest $(TESTS)

train: $(READY) ## the main job on the digits; ARGS='--folds 3' adds options
	$(BIN)/python -m course_lib train $(ARGS)

docs: $(READY) ## render the pages into _docs/ (Quarto if it is there, else nbconvert)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -c 'from course_lib.tools.docs import build_site; build_site()'

bench: $(READY) ## time us against the alternatives, side by side, and store the page that shows it (half an hour)
	@set -e; for f in benchmarks/[a-z]*.py; do echo "$$f"; $(BIN)/python $$f; done
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level=WARN nbs/tools/speed.ipynb
	$(BIN)/nbdev-clean --fname nbs/tools/speed.ipynb

weights: $(READY) ## train the weights that come with the package again (a few minutes), and the table of lesson 05 (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -c 'from course_lib.transfer import pretrain_glyphnet, store_transfer; print(f"accuracy on fonts held out: {pretrain_glyphnet():.4f}"); store_transfer()'

export: $(READY) ## write course_lib/ and README.md from the notebooks
	$(BIN)/nbdev-export
	$(BIN)/python -c 'from course_lib.tools.docs import write_readme; write_readme()'

outputs: $(READY) ## run all notebooks and store their outputs
	@set -e; for f in $$(find nbs -name '*.ipynb' -not -path '*/.*' -not -path '*/_*' | sort); do \
	  OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level=WARN $$f; \
	  $(BIN)/nbdev-clean --fname $$f; echo "$$f"; done

clean: ## remove what can be made again, except .venv
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
