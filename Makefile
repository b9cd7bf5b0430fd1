PYTHON ?= python3
VENV ?= .venv

bin := $(VENV)/bin
installed := $(VENV)/.installed

.PHONY: demo test test-slow test-all style quality

demo: $(installed)
	$(bin)/python scripts/demo.py --output_dir runs/demo

test: $(installed)
	$(bin)/python -m pytest -m "not slow" -n 2

# One at a time, because slow tests start processes of their own. Exit status 5: no test is marked slow.
test-slow: $(installed)
	$(bin)/python -m pytest -m slow || [ $$? -eq 5 ]

test-all: test test-slow

style: $(installed)
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

quality: $(installed)
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
