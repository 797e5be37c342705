PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install quickstart test test-slow test-tpu-compiler test-interop check bench clean

# Installed once for each PYTHON and constraints; another PYTHON makes the environment anew.
BASE = $(VENV)/installed-$(notdir $(PYTHON))
TEST = $(VENV)/installed-test-$(notdir $(PYTHON))
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

install: $(BASE)
$(BASE): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) -e .
	touch $@

$(TEST): $(BASE)
	$(PIP) -e '.[test,check]'
	touch $@

quickstart: install
	$(BIN)/bigmodel study --config=configs/quickstart.py --workdir=runs/quickstart

test: $(TEST)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# With what runs studies on clusters; Slurm itself is Debian's slurm-wlm.
test-slow: $(TEST)
	$(PIP) -e '.[ray,slurm]'
	XLA_FLAGS=--xla_force_host_platform_device_count=8 $(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest -m fuzz --hypothesis-profile=slow

# An environment on top of that of the tests, whose packages a path file shows it.
SITE = -c "import sysconfig; print(sysconfig.get_path('purelib'))"
define on_top
	$(PYTHON) -m venv --clear $(VENV)-$(1)
	$(BIN)/python $(SITE) > $$($(VENV)-$(1)/bin/python $(SITE))/tests.pth
	$(VENV)-$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
	touch $@
endef

# libtpu makes other imports noisy.
$(VENV)-tpu/installed: $(TEST)
	$(call on_top,tpu)

test-tpu-compiler: $(VENV)-tpu/installed
	$(VENV)-tpu/bin/python -m pytest -m tpu_compiler tests/planner/test_tpu_compiler.py tests/cli/test_console.py

# torch and transformers, which a user does not need.
$(VENV)-interop/installed: $(TEST)
	$(call on_top,interop)

test-interop: $(VENV)-interop/installed
	$(VENV)-interop/bin/python -m pytest -m interop tests/interop

check: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(BASE)
	$(PIP) -e '.[bench]'
	$(BIN)/python benchmarks/train_step.py

clean:
	rm -rf $(VENV) $(VENV)-tpu $(VENV)-interop runs
