PYTHON ?= python3
VENV ?= .venv

bin := $(VENV)/bin
installed := $(VENV)/.installed

.PHONY: help demo docs test test-slow test-all style quality

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

demo: $(installed)  ## pretrain LayerLock and MAE on rendered videos, and see what they learned: ten minutes
	$(bin)/python scripts/demo.py --output_dir runs/demo

docs: $(installed)  ## build the documentation as a site that needs no network, in site/
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict

test: $(installed)  ## run the fast tests
	$(bin)/python -m pytest -m "not slow" -n 2 --dist worksteal

# By files, because slow tests of one share what it sets up. Exit status 5: no test is marked slow.
test-slow: $(installed)  ## run the slow tests
	$(bin)/python -m pytest -m slow --durations=15 -n 2 --dist loadfile || [ $$? -eq 5 ]

test-all: test test-slow  ## run all tests

style: $(installed)  ## format, and mend what can be mended
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

quality: $(installed)  ## check format, lint and spelling
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/codespell

$(installed): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'Python 3.10 or newer is needed; choose one with "make PYTHON=python3.12 ...".' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'The venv module of Python is missing; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	[ -x $(bin)/python ] || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install -c constraints.txt -e ".[dev]"
	@bash scripts/ensure_ffmpeg.sh
	@touch $@
