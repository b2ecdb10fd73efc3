# One command each: `make demo`, `make test`. Everything is installed into .venv/ first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests at the same time: they wait more than they work.
JOBS ?= 3

.PHONY: demo test check format proto lock bench clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

$(VENV)/.runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.runtime ## take 200 images of a simulated Eiger and write them to demo-output/
	@$(BIN)/stddaq demo $(ARGS)

test: $(VENV)/.dev ## run all checks and tests
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: $(VENV)/.dev ## format, lint, types, layers, generated code
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: $(VENV)/.dev ## generate the protobuf code from proto/
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=tango_stddaq/codecs/pb \
	  --pyi_out=tango_stddaq/codecs/pb proto/std_daq_protocol.proto

lock: $(VENV)/.dev ## lock the newest versions that fit pyproject.toml in constraints.txt
	@$(BIN)/uv pip compile --quiet --upgrade --all-extras --no-emit-index-url --no-header \
	  --no-annotate pyproject.toml -o constraints.txt

bench: $(VENV)/.dev ## measure everything (minutes): a table and benchmarks/results.json
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the environment and everything generated
	rm -rf $(VENV) demo-output logs .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
