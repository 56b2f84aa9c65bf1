# Every target sets up what it needs in .venv. Requires Python 3.11 or newer with pip.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
LOG    := $(VENV)/install.log
PIP    := $(BIN)/python -m pip --disable-pip-version-check
PARALLEL := --numprocesses auto --dist loadfile
# Where it is set, as in some containers, each process compiles all it imports again, which takes longer than many tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-all coverage test-browser check docs benchmarks-report regression serve format lock clean

help:
	@echo "make demo          Run everything on two synthetic labs; SOURCE=<folder> TARGET=<folder> for two labs of your own"
	@echo "make serve         Run a Prefect server and an MLflow server on this machine, and all flows"
	@echo "make test          Run the tests, without those that take minutes"
	@echo "make test-all      Run all tests, those of properties with new random examples"
	@echo "make coverage      Run all tests, and print what no test executes"
	@echo "make test-browser  Run the tests of the web pages in Chromium (installs it on Debian and Ubuntu)"
	@echo "make check         Run ruff, mypy and import-linter"
	@echo "make docs          Build the documentation into var/site"
	@echo "make benchmarks-report  Write the tables of docs/ again from docs/benchmarks/results/*.json"
	@echo "make regression    Compare the time of imports, commands and tiles with a commit of a week ago; ARGS=\"--base v0.2.0\""
	@echo "make format        Format the code"
	@echo "make lock          Write constraints.txt again from pyproject.toml; UPGRADE=1 takes the newest releases"
	@echo "make clean         Delete the virtual environment and var/, where demo and serve store all they write"
	@echo "ARGS=\"...\"         Options for the command that demo, serve and the tests run"

demo: $(STAMP)
	@$(BIN)/microseg demo $(if $(SOURCE),--source "$(SOURCE)") $(if $(TARGET),--target "$(TARGET)") $(ARGS)

serve: $(STAMP)
	@$(BIN)/microseg service local-servers $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest $(PARALLEL) -m "not long" $(ARGS)

test-all: $(STAMP)
	@$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=default $(ARGS)

coverage: $(STAMP)
	@$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=default --cov --cov-report=term $(ARGS)

test-browser: $(STAMP)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		$(if $(filter 0,$(shell id -u)),,sudo) apt-get install --yes --no-install-recommends chromium chromium-driver
	@$(BIN)/python -m pytest tests/flows/test_browser.py $(ARGS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports

docs: $(STAMP)
	@$(PIP) install --quiet --constraint constraints.txt --group docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict $(ARGS)
	@echo "Built var/site/index.html"

benchmarks-report: $(STAMP)
	@$(BIN)/python -m benchmarks.report $(ARGS)

regression: $(STAMP)
	@$(BIN)/python -m benchmarks.regression $(ARGS)

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# One file for all supported versions of Python. Without CUDA's libraries and Triton: each build of PyTorch pins its own.
lock: $(STAMP)
	@$(PIP) install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate $(if $(UPGRADE),--upgrade) \
		--custom-compile-command "make lock" --all-extras --group dev --group docs --output-file constraints.txt pyproject.toml
	@grep -v -E '^(nvidia-|cuda-|triton)' constraints.txt >$(VENV)/constraints.txt && cp $(VENV)/constraints.txt .

clean:
	rm -rf $(VENV) var

# pip comes from the virtual environment: the one of Python 3.11 may be too old for dependency groups. It compiles nothing:
# 23,000 modules take over a minute, and Python compiles those that are used when it imports them.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "microseg needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing microseg and its dependencies into $(VENV) (some minutes the first time) ..."
	@{ $(PIP) install --upgrade --constraint constraints.txt "pip>=25.1" && $(PIP) install --no-compile --constraint constraints.txt --editable ".[pretrained]" --group dev; } \
		>$(LOG) 2>&1 || { cat $(LOG) >&2; echo "The installation failed; see the messages above." >&2; exit 1; }
	@touch $(STAMP)
