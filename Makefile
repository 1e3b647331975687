# Two commands: `make run` starts the whole stack, `make test` runs every test. Both install what they need.

VENV := $(shell scripts/venv-path)
BIN := $(VENV)/bin
SOURCES := $(shell find services shared -type f -not -path '*/__pycache__/*' -not -path 'shared/bulkhead/proto/*')
# An environment inside the clone links to it; one elsewhere holds a copy, made anew when a source changes.
ifeq ($(VENV),.venv)
EDITABLE := -e
STAMP_NEEDS := pyproject.toml hatch_build.py $(shell find shared/proto -name '*.proto')
else
STAMP_NEEDS := pyproject.toml hatch_build.py $(SOURCES)
endif
CRITEST := PYTHONPATH=tests $(BIN)/python -m conformance.run

.PHONY: run check test root-test suite-test vm-test conformance bench clean setup-run setup-test setup-vm

run: setup-run $(VENV)/.installed
	$(BIN)/bulkhead up $(if $(CONFIG),--config $(CONFIG))

# The fast part, without root and under a minute: format, lint, types, unit tests.
check: setup-test $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit

test: check root-test suite-test

# Real runtimes, CNI plugins, registry, crictl and containerd; needs root.
# The peers are built first: the tests themselves run in a network namespace that reaches nothing.
root-test: setup-test $(VENV)/.installed-dev
	@[ "$$(id -u)" = 0 ] || { echo "make: these tests make pods and need root; make check does without" >&2; exit 1; }
	$(BIN)/python tests/conformance/build.py
	$(BIN)/pytest -q tests/root

# Control groups of version 2, and the units under systemd, in an emulated machine made of Debian's packages. Needs root,
# 4 GB of memory, 4 GB of disk, and half an hour.
vm-test: setup-test setup-vm $(VENV)/.installed-dev
	$(BIN)/pytest -q tests/vm/test_machine.py

# The Kubernetes project's conformance suite, critest, once: with the runtime that lets most of its specs run.
suite-test: setup-test $(VENV)/.installed-dev
	$(CRITEST) --runtime runc-1.5

# The same with each runtime. With crun: KILL=image-svc kills that service before each spec, ARGS='--remove-images' removes
# every image before each. ARGS='--peer containerd' holds it against containerd, ARGS='--runtime crun --focus Streaming'
# narrows it.
conformance: setup-test $(VENV)/.installed-dev
	$(CRITEST) $(if $(KILL),--kill $(KILL)) $(ARGS)

bench: setup-test $(VENV)/.installed-dev
	$(BIN)/python bench/bench.py $(ARGS)

setup-run setup-test setup-vm: setup-%:
	@scripts/setup $*

$(VENV)/bin/python: | setup-run
	/usr/bin/python3 -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'

$(VENV)/.installed: $(STAMP_NEEDS) $(VENV)/bin/python
	$(BIN)/pip install -q --disable-pip-version-check $(EDITABLE) .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check --group dev
	@touch $@

# The packages and users that scripts/setup made stay.
clean:
	rm -rf $(VENV) .venv build dist shared/bulkhead/proto tests/conformance/.bin tests/vm/.cache
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
