# Every command installs what it needs into .venv: Python >= 3.11 and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo tutorials docs test test-extras test-all lint format bench bench-quick package clean

demo: $(VENV)/plot
	$(BIN)/python demo/demo.py

# Runs all of them, at most three minutes each, and writes the notebooks with what came out.
tutorials: $(VENV)/tutorials
	cd tutorials && ../$(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --execute *.py

# The site, in docs/_build/html; a warning is an error.
docs: $(VENV)/docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

# The quick tests, in less than ten minutes on two cores.
test: $(VENV)/test
	$(BIN)/python -m pytest -m "not slow and not exhaustive"

# All but most cases of large cross products, long runs and most pages of docs; with the comparisons with other libraries,
# for which the CPU build of PyTorch is enough.
test-extras: $(VENV)/test-extras
	$(BIN)/python -m pytest -m "not exhaustive"

# Every test, in an hour or two.
test-all: $(VENV)/test-extras
	$(BIN)/python -m pytest

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright --pythonpath $(BIN)/python --level error

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes benchmarks/results and the tables of the pages, in an hour or two; ONLY="bench_fit bench_layers" runs some.
bench: $(VENV)/bench
	$(BIN)/python benchmarks/run.py $(ONLY)

# The most telling part, in five minutes; it only prints.
bench-quick: $(VENV)/bench
	$(BIN)/python benchmarks/run.py --quick $(ONLY)

# What would be published, checked; the README's code runs from the wheel, alone and with warnings as errors.
package: $(VENV)/package
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv --clear dist/venv
	dist/venv/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd dist && sed -n '/^```python$$/,/^```$$/{/^```/!p}' ../README.md | venv/bin/python -W error -

# One stamp for each extra, so that it is installed again when pyproject.toml changes.
$(VENV)/%: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable ".[$*]"
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis demo_output docs/_build docs/api docs/tutorials dist
