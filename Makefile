# The entry points of the project; `make` alone lists them.
#   PYTHON=python3.12   the interpreter that creates the environment (3.11 or newer)
#   VENV=.venv          where the environment lives
#   ARGS="..."          passed on to the command that a verb runs
PYTHON ?=
VENV ?= .venv
PROFILE ?= embedded
BENCH ?= capture
ARGS ?=

RUN := $(VENV)/bin/python
# pip is the last thing that creating an environment makes
PIP := $(VENV)/bin/pip
STAMP := $(VENV)/.installed
EXTRAS := evaluation,training,families,vqa,development

.DEFAULT_GOAL := help
.PHONY: help install explore report figures test browser bench embedded lint

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv and install everything (the other verbs do this by themselves)

explore: $(STAMP)  ## JupyterLab with the explorer: ask, click a word, see where the model looked (Run > Run All Cells)
	$(RUN) -m jupyterlab notebooks/explorer.ipynb $(ARGS)

report: $(STAMP)  ## run the notebooks of PROFILE (default: embedded) -> reports/PROFILE/index.html
	$(RUN) -m analysis.report --profile $(PROFILE) $(ARGS)

figures: $(STAMP)  ## draw the figures of PROFILE's report again, without a model (ARGS="--style grayscale")
	$(RUN) -m analysis.report.figures --profile $(PROFILE) $(ARGS)

test: $(STAMP) browser  ## run the tests, a file at a time on each of two cores
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile $(ARGS)

browser: $(STAMP)  ## find a Chromium for the explorer's tests, or install one
	@$(RUN) tests/browser.py

bench: $(STAMP)  ## time and memory of BENCH: capture (against plain generation), end_to_end (against the reference way), tokens, difflmm, gcg, explorer
	$(RUN) benchmarks/bench_$(BENCH).py $(ARGS)

embedded: $(STAMP)  ## train the embedded models again (a long run on a CPU)
	$(RUN) -m embedded.train $(ARGS)
	$(RUN) -m analysis.claims.cards

lint: $(STAMP)  ## check style and formatting, notebooks included
	$(RUN) -m ruff check . $(ARGS)
	$(RUN) -m ruff format --check .

$(PIP):
	@found=; for candidate in $(or $(PYTHON),python3 python python3.14 python3.13 python3.12 python3.11); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No Python 3.11 or newer was found (tried: $(or $(PYTHON),python3 python python3.14 ... python3.11));" >&2; \
	    echo "install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv $(VENV) || { \
	    echo "$$found cannot create virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# One pip call resolves torch and torchvision together; the check after it catches a pair built for different devices
# (a local wheel folder or an extra index may offer only one of the two).
$(STAMP): pyproject.toml | $(PIP)
	$(RUN) -m pip install --disable-pip-version-check -e ".[$(EXTRAS)]"
	@$(RUN) -c 'import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)' || { \
	    echo "torch and torchvision in $(VENV) do not fit each other; install both from one index:" >&2; \
	    echo "  $(RUN) -m pip install --force-reinstall torch torchvision --index-url <index>" >&2; exit 1; }
	@touch $@
