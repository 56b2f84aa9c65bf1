# Each target does all its own set-up. Needs Python 3.11 or newer with pip.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
WORKERS := --numprocesses auto --dist loadfile

.PHONY: demo test test-all test-browser check serve format clean help

help:
	@echo "make demo       the whole story on two made labs;  SOURCE=<folder> TARGET=<folder> for your own"
	@echo "make test       the fast tests"
	@echo "make test-all   all tests, the long ones too"
	@echo "make test-browser  the pages people look at, in Chromium (Debian, Ubuntu: installs it)"
	@echo "make check      ruff, mypy, import-linter"
	@echo "make serve      a Prefect server and an MLflow server on this machine"

demo: $(STAMP)
	@$(BIN)/python -m flows.demo $(if $(SOURCE),--source "$(SOURCE)") $(if $(TARGET),--target "$(TARGET)") $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest $(WORKERS) -m "not long" $(ARGS)

test-all: $(STAMP)
	@$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-browser: $(STAMP)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		$(if $(filter 0,$(shell id -u)),,sudo) apt-get install --yes --no-install-recommends chromium chromium-driver
	@$(BIN)/python -m pytest tests/flows/test_browser.py $(ARGS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports

serve: $(STAMP)
	@$(BIN)/python -m flows.service.local_servers $(ARGS)

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) var

# pip from the virtual environment itself: any pip of Python 3.11 may be too old for dependency groups
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "microseg needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing microseg and what it needs into $(VENV) (some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[pretrained]" --group dev
	@touch $(STAMP)
