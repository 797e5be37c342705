PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install quickstart test test-slow check bench clean

# Installs with the extras that a target asks for; again only when what is installed changed.
install: $(VENV)/installed
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check]'
	touch $@

quickstart: install
	$(BIN)/bigmodel study --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/train_step.py

clean:
	rm -rf $(VENV) runs
