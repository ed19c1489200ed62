# make quickstart   the whole guide on a small embedded model, no GPU, no account
# make test         lint and all tests

PYTHON ?= python3
VENV := .venv

.PHONY: quickstart test
quickstart: $(VENV)/installed
	$(VENV)/bin/python quickstart/run.py

test: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	touch $@
