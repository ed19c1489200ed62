# make quickstart   the whole guide on a small embedded model, no GPU, no account
# make test         lint and all tests
# make test-faults  the tests that kill, damage and fuzz, with many more cases: ten minutes

PYTHON ?= python3
VENV := .venv

.PHONY: quickstart test test-faults
quickstart: $(VENV)/installed
	$(VENV)/bin/python quickstart/run.py

test: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest

test-faults: $(VENV)/installed
	KILLS=100 FLIPS=200 EVERY=1 FUZZ=10000 $(VENV)/bin/python -m pytest -s tests/test_resume.py tests/test_fuzz.py tests/test_safety.py

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	touch $@
