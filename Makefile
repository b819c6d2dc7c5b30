# Everything that is done with a checkout. `make run` and `make test` need only Python 3.11+ (with venv), git and make.
# All paths are relative, so that a checkout may lie in a folder with spaces in its name.

# The first of these that is Python 3.11 or newer and can make environments is used. To choose: `make PYTHON=python3.12 test`.
PYTHON ?= python3.13 python3.12 python3.11 python3 python
# Tests run in so many processes; the tests of one file stay together, one after the other.
PROCESSES ?= 3
# Further arguments for `make run` and for pytest, e.g. `make test ARGS="-k backoff"`.
ARGS ?=

# Where the environment is; with another one beside it a second Python can be tried: `make ENVIRONMENT=.venv-3.13 PYTHON=python3.13 test`.
ENVIRONMENT := .venv
# What is installed into it beside the product: all that a checkout needs, or `test`, what most tests need.
GROUP := dev

BIN := $(ENVIRONMENT)/bin
INSTALLED := $(ENVIRONMENT)/installed
CODE := archibald_pgq $(wildcard examples migrations) tests
# As an installed package is: the tests start hundreds of processes, and where PYTHONDONTWRITEBYTECODE is set each would compile anew.
COMPILE = $(BIN)/python -m compileall -q archibald_pgq tests

# An environment knows its own absolute place: in a checkout that was moved or copied it has to be made again.
ifneq "$(shell cat $(INSTALLED) 2>/dev/null)" "$(CURDIR)"
$(INSTALLED): always
endif

.DEFAULT_GOAL := help
.PHONY: help run test faults chaos check lint types imports coverage rest format install clean always

help: ## Show the targets
	@awk -F ': .*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

run: $(INSTALLED) ## Run the main job: a day of 60 agents against a small ERP, on a Postgres of its own
	@$(BIN)/python -m archibald_pgq demo $(ARGS)

test: $(INSTALLED) ## Run the tests on a real Postgres: a container where an engine answers, else the bundled one
	@$(COMPILE)
	@$(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile $(ARGS)

faults: $(INSTALLED) ## Run all fault tests, also the long ones, and print what they measured
	@$(COMPILE)
	@$(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile -m '' tests/acceptance $(ARGS)

chaos: $(INSTALLED) ## Let random faults loose on real workers, e.g. ARGS="--seconds 60 --seed 1"
	@$(BIN)/python -m tests.chaos $(ARGS)

check: lint types imports coverage rest ## Run what CI runs: lint, types, import directions, tests

lint: $(INSTALLED) ## Look for mistakes and for code that is not formatted
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/ruff format --quiet --diff $(CODE)

types: $(INSTALLED) ## Check the types
	@$(BIN)/mypy $(CODE)

imports: $(INSTALLED) ## Check that imports point one way
	@$(BIN)/lint-imports

# The folder, not the module's name: for a name coverage imports the package and forgets it again, and SQLAlchemy's compiled
# parts do not survive being imported twice. And not for all tests: being traced, they take half as long again.
DOMAIN := tests/unit $(patsubst %,tests/integration/test_%.py,bad_input checkpoints doctor explain preemption)

coverage: $(INSTALLED) ## Run the tests of the domain layer, and require that they reach all of it
	@$(COMPILE)
	@$(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile --cov=archibald_pgq/domain --cov-branch --cov-fail-under=100 \
	    --cov-report=term-missing:skip-covered $(ARGS) $(DOMAIN)

rest: $(INSTALLED) ## Run all tests that `make coverage` does not
	@$(COMPILE)
	@$(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile $(addprefix --ignore=,$(DOMAIN)) $(ARGS)

format: $(INSTALLED) ## Mend what can be mended without thinking
	@$(BIN)/ruff check --quiet --fix-only $(CODE)
	@$(BIN)/ruff format --quiet $(CODE)

install: $(INSTALLED) ## Make the environment in .venv; the other targets do it by themselves

clean: ## Remove the environment and all that was built
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@found=; why=; \
	for python in $(PYTHON); do \
	    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null) || continue; \
	    if "$$python" -c 'import venv, ensurepip' 2>/dev/null; then found=$$python; break; fi; \
	    why="Python $$version has no venv; install it (on Debian and Ubuntu: apt install python3-venv)"; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: $${why:-Python 3.11 or newer is needed, and none of $(PYTHON) is}" >&2; exit 1; \
	fi; \
	echo "Installing into $(ENVIRONMENT) with Python $$version" >&2; \
	rm -f $@; \
	"$$found" -m venv --clear $(ENVIRONMENT) && \
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && \
	$(BIN)/python -m pip install --quiet --editable . --group $(GROUP) && \
	$(COMPILE) && \
	pwd -P >$@
