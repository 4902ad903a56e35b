# make demo     watch the bundled models: parallel decoding, then drafts for an autoregressive target
# make test     ruff, mypy --strict, pytest on all cores
# make results  docs/results.md and its figure, from the runs in benchmarks/results/suite
# All set up .venv on the first call and again only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
PROMPT ?= Leo has 6 shells. Leo finds 8 more. Leo loses 5. Leo gets 7 from Mia. How many shells does Leo have now?
ASK ?= Turn into JSON: Tom is 31 and lives in Oslo.
BIN := .venv/bin
USER_STAMP := .venv/.installed
DEV_STAMP := .venv/.installed-dev

.PHONY: demo test lint results clean
.NOTPARALLEL:

demo: $(USER_STAMP)
	$(BIN)/dllm generate "$(PROMPT)" --delay 1
	$(BIN)/dllm speculate "$(ASK)" --delay 1

test: lint
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist worksteal

lint: $(DEV_STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

results: $(DEV_STAMP)
	$(BIN)/python -m benchmarks.suite_report

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo >&2 \
	  "dllm needs Python 3.11 or newer, and '$(PYTHON)' is not. Name one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e $(1)
	@touch $(2)
endef

$(USER_STAMP): pyproject.toml constraints.txt
	$(call install,.,$@)

# The dev set-up contains the user's, so `make demo` after `make test` has nothing to do.
$(DEV_STAMP): pyproject.toml constraints.txt
	$(call install,'.[dev]',$(USER_STAMP) $@)
