# Every verb of the project. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format install interpreters clean verify-flow verify-agent verify-sidecar verify-postgres verify-deploy bench bench-agent bench-sidecar bench-postgres screenshot

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Quayscope needs Python 3.11 or newer; next: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) has no venv module; next: apt-get install python3-venv" >&2; exit 2; }
	@touch $@

# The demo needs no development tools, so it installs without them: fewer packages, sooner.
$(VENV)/.runtime: $(VENV)/.made pyproject.toml hatch_build.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml hatch_build.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	@touch $@ $(VENV)/.runtime

install: $(VENV)/.dev ## set up the virtual environment with development tools

interpreters: ## set up CPython 3.9, 3.12 and 3.13 for the agent's tests, or say which is missing
	@$(PYTHON) tests/interpreters.py

demo: $(VENV)/.runtime ## run the main job: make demo ARGS="--duration 30s --exit --json out.json"
	$(BIN)/quayscope demo $(ARGS)

test: $(VENV)/.dev ## set up and run every test: make test ARGS="-k store"
	@# What bounds a time or a share of CPU by itself is marked alone, and runs after the others have ended.
	@# A shared machine is not always calm: what fails is run once more by itself, and that decides.
	@for part in "not alone" alone; do \
	  set --; [ "$$part" = alone ] || set -- -n 3 --dist loadscope; \
	  $(BIN)/python -m pytest -m "$$part" "$$@" $(ARGS); status=$$?; \
	  if [ $$status -eq 1 ]; then \
	    echo "What failed is run once more by itself:"; \
	    $(BIN)/python -m pytest -m "$$part" --last-failed --last-failed-no-failures none $(ARGS); status=$$?; \
	  fi; \
	  [ $$status -eq 0 ] || [ $$status -eq 5 ] || exit $$status; \
	done

lint: $(VENV)/.dev ## types, style, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

verify-flow: $(VENV)/.dev ## the whole flow at full size: every line of the demo's promises, with figures
	$(BIN)/python -m pytest tests/e2e -m e2e --full $(ARGS)

verify-agent: $(VENV)/.dev interpreters ## the agent's promises at full size, with figures (about half an hour)
	$(BIN)/python -m pytest tests/integration/agent --full -s $(ARGS)

verify-sidecar: $(VENV)/.dev ## the sidecar's promises at full size, with figures (an hour and a half: fuzzers, soak)
	$(BIN)/python -m pytest tests/fuzz tests/integration/sidecar --full -s $(ARGS)

verify-postgres: $(VENV)/.dev ## what is said of databases, at full size, with figures, on Postgres 13 to 18
	$(BIN)/python -m pytest tests/unit/profile tests/integration/sidecar -k "sessions or join or statistics or locks or statement" --full -s $(ARGS)

verify-deploy: $(VENV)/.dev ## captures, the injector, images and manifests at full size, with figures
	$(BIN)/python -m pytest tests/integration/control tests/integration/injector tests/unit/injector --full -s $(ARGS)

bench-agent: $(VENV)/.dev ## what the agent costs, beside the stock tools: make bench-agent ARGS="--pairs 5"
	PYTHONPATH=tests $(BIN)/python -m bench.agent $(ARGS)

bench-sidecar: $(VENV)/.dev ## what the native sampler costs and is worth, beside perf: make bench-sidecar ARGS="--parts steady,perf"
	PYTHONPATH=tests $(BIN)/python -m bench.sidecar $(ARGS)

bench-postgres: $(VENV)/.dev ## what reading a database costs and how much of it is proven: make bench-postgres ARGS="--seconds 10"
	PYTHONPATH=tests $(BIN)/python -m bench.postgres $(ARGS)

# A missed bound (exit code 1) is a result too: the document says so.
bench: $(VENV)/.dev ## every benchmark, and docs/benchmarks.md from its figures
	@status=0; for part in agent sidecar postgres; do \
	  PYTHONPATH=tests $(BIN)/python -m bench.$$part $(ARGS); code=$$?; [ $$code -le $$status ] || status=$$code; done; \
	  [ $$status -gt 1 ] || PYTHONPATH=tests $(BIN)/python -m bench.refresh || status=3; exit $$status

screenshot: $(VENV)/.dev ## take the documents' pictures anew from a live demo
	$(BIN)/python tests/e2e/take_screenshot.py docs/images

clean: ## remove what was built
	rm -rf $(VENV) build dist collector/quayscope/collector/web/static
