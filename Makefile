# make up and make test work alone on a fresh machine; everything they need goes into .venv and the user's cache.
.DEFAULT_GOAL := help
BIN := .venv/bin
MESH ?=
ARGS ?=

# Without compiled files on disk, each of some hundred processes that the tests start compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup up upstream test unit soak mutation lint check bench chart lock image clean \
  conformance conformance-core cluster

help: ## show these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

.venv/.ready: requirements.txt pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh

setup: .venv/.ready ## make .venv with everything in it

up: setup ## start a mesh on this machine and show it until Ctrl-C
	@$(BIN)/meshscrape up $(ARGS) $(MESH)

# Four workers on two cores, because tests wait for most of their time. The tests of a file stay on one worker
# (tests/support/distribution.py). Envoys set the limit: those of one file take at most 29 of the 128 inotify
# instances that a user has by default.
test: setup ## run every test
	@$(BIN)/pytest -n 4 --no-loadscope-reorder $(ARGS)

upstream: setup ## fetch the CRDs and sample manifests that tests read (needs Go)
	@$(BIN)/python scripts/upstream.py

unit: setup ## run the tests that start no process
	@$(BIN)/pytest tests/unit $(ARGS)

soak: setup ## run the long variants (SOAK_MINUTES=10 each): rotations, kills, attacks, direct scraping's rate
	@$(BIN)/pytest tests/soak -s $(ARGS)

mutation: setup ## break pure modules one fault at a time and list what no test notices (ARGS='plan.judge --minutes 10')
	@$(BIN)/python scripts/mutation.py $(ARGS)

lint: setup ## types, style, import direction
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check: setup ## start the mesh, prove it, stop it
	@$(BIN)/meshscrape up --check $(ARGS) $(MESH)

conformance: setup upstream ## run every scenario on a real Kubernetes and Istio (root, Go; or KUBECONFIG=FILE); writes docs/conformance.md
	@sh scripts/conformance.sh whole $(ARGS)

conformance-core: setup upstream ## run the scenarios that every change must pass
	@sh scripts/conformance.sh core $(ARGS)

cluster: setup ## start Kubernetes and Istio as processes (root, Go) and keep them until Ctrl-C
	@PYTHONPATH=tests exec $(BIN)/python -m conformance.cluster up

bench: setup ## measure; prints a table and writes build/bench.json
	@PYTHONPATH=tests $(BIN)/python -m bench $(ARGS)

chart: setup ## write the files of the Helm chart that the package defines
	@$(BIN)/python scripts/chart.py

lock: setup ## pin every dependency with hashes
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --all-extras --group dev pyproject.toml -o requirements.txt

image: ## build the container image
	docker build -t meshscrape .

clean: ## remove what the other commands made here
	rm -rf .venv .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
