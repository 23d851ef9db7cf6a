# `make demo` and `make test` need Python 3.11, git and make. They install the rest (.ci/setup).

BIN := .venv/bin
SETUP := .venv/set-up
BENCH_SETUP := .venv-bench/set-up
SUPERSET_SETUP := .venv-superset/set-up
DBT_SETUP := .venv-dbt/set-up

.PHONY: help demo test soak chaos hosts superset dbt fuzz month polling bench bench-claims bench-growth views picture check lock clean quick

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: $(SETUP) ## show the whole job, without a key or a network
	$(BIN)/result-archiver demo

test: $(SETUP) ## run all tests on SQLite and PostgreSQL, and all checks
	.ci/setup postgresql
	.ci/setup pgbouncer
	.ci/setup chromium
	.ci/setup drivers
	$(BIN)/pytest -n 3 --dist worksteal

quick: $(SETUP) ## run the unit tests (under 30 seconds; no server, no other process)
	FUZZ_SECONDS=1 $(BIN)/pytest -q tests/unit

soak: $(SETUP) ## run the service for ten minutes with outages, and 2,000 passes (40 minutes)
	.ci/setup postgresql
	$(BIN)/pytest -m soak -s

chaos: $(SETUP) ## kill processes, cut networks, fill disks and break the API (15 minutes)
	.ci/setup postgresql
	$(BIN)/pytest -m chaos -s

hosts: $(SETUP) ## kill, freeze and cut off hosts that share passes (as root; 12 minutes)
	.ci/setup postgresql
	.ci/setup hosts
	$(BIN)/pytest -m hosts -s

superset: $(SETUP) $(SUPERSET_SETUP) ## import the bundle of `bi superset` into Superset, and compare its data (10 minutes)
	.ci/setup postgresql
	$(BIN)/pytest -m superset

dbt: $(SETUP) $(DBT_SETUP) ## build the package of `bi dbt`, and compare its metrics (3 minutes)
	.ci/setup postgresql
	$(BIN)/pytest -m dbt

fuzz: $(SETUP) ## decode malformed answers for ten minutes
	FUZZ_SECONDS=600 $(BIN)/pytest tests/unit/test_fuzz.py -s

month: $(SETUP) ## simulate a month of runs, and print its cost
	$(BIN)/python -m bench.month

polling: $(SETUP) ## compare our polling with fixed intervals
	$(BIN)/python -m bench.polling

bench: $(SETUP) $(BENCH_SETUP) ## compare the speed with scripts and dlt (75 minutes)
	.ci/setup postgresql
	$(BIN)/python -m bench

bench-claims: $(SETUP) ## time claims and tracking, up to a million queued runs (10 minutes)
	.ci/setup postgresql
	$(BIN)/python -m bench.claims

bench-growth: $(SETUP) ## time an archive of 10 million test rows (up to 40 minutes)
	.ci/setup postgresql
	$(BIN)/python -m bench.growth

views: $(SETUP) ## write docs/VIEWS.md from the descriptions in the migrations
	$(BIN)/python -m tests.support.views_page

picture: $(SETUP) ## take docs/page.png from the demo's archive
	.ci/setup chromium
	$(BIN)/python -m tests.support.picture

check: $(SETUP) ## run the linter, the formatter, the type checker and the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# `make lock` keeps pins that still fit; `make lock UPGRADE=--upgrade` takes the newest versions.
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header --no-emit-index-url $(UPGRADE)

lock: $(SETUP) ## write the lock files from pyproject.toml
	$(LOCK) --output-file requirements.lock
	$(LOCK) --output-file requirements-dev.lock --constraints requirements.lock --group dev
	$(LOCK) --output-file requirements-bench.lock --constraints requirements.lock --group bench

clean: ## remove the files that other targets made
	rm -rf .venv .venv-bench .venv-superset .venv-dbt build dist demo .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find etl migrations tests -name __pycache__ -prune -exec rm -rf {} +

$(SETUP): requirements-dev.lock pyproject.toml .ci/setup
	.ci/setup venv
	@touch $@

$(BENCH_SETUP): requirements-bench.lock .ci/setup
	.ci/setup bench
	@touch $@

$(SUPERSET_SETUP): .ci/setup
	.ci/setup superset
	@touch $@

$(DBT_SETUP): .ci/setup
	.ci/setup dbt
	@touch $@
