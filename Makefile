# make generate   install the runtime and continue examples/prompt.txt with the built-in model
# make test       install everything the tests need and run them
# make check      ruff, mypy, pyright, then the tests

PYTHON ?= python3
VENV ?= .venv
TEST_VENV ?= .venv-test
TORCH ?= torch==2.13.0
RUN := $(TEST_VENV)/bin/python -m

.PHONY: generate install test test-slow lint check docs golden bench bench-gpu results clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e '.[cpu]'
	touch $@

generate: install
	$(VENV)/bin/bltcli generate --method blt-s -k 16 < examples/prompt.txt

# torch first: whatever depends on it then takes this build
$(TEST_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/python -m pip install --quiet '$(TORCH)'
	$(TEST_VENV)/bin/python -m pip install --quiet -e '.[test,tensorrt-rtx]'
	touch $@

# a process per core; each half of the files stays together as long as it lasts, and with it what their fixtures made
test: $(TEST_VENV)/.installed
	$(RUN) pytest -n auto --dist worksteal

# minutes: every exactness claim at full size
test-slow: $(TEST_VENV)/.installed
	$(RUN) pytest -m slow -s

lint: $(TEST_VENV)/.installed
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pyright --pythonpath $(TEST_VENV)/bin/python

check: lint test

# docs/cli.md and the man page, from --help
docs: $(TEST_VENV)/.installed
	$(RUN) bltcli.commands.docs

# golden outputs of the built-in model, from the torch model
golden: $(TEST_VENV)/.installed
	$(RUN) bltcli_export.golden bltcli/models/builtin

# writes benchmarks/results/
bench: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python benchmarks/compare_hf.py
	$(TEST_VENV)/bin/bltcli bench benchmarks/prompts.jsonl --ignore-eos --run 'ar exact=no,yes' --run 'blt-s k=2,4,8,16,auto' \
		--run 'blt-d block=4,8' --run 'blt-d block=8 unmask=prefix commit=patches' --run 'blt-d block=4 commit=sure' \
		--run 'blt-dv block=4,8' --run 'blt-h block=4 trust=1' --run auto \
		--repeats 7 --format json -o benchmarks/results/builtin.json
	$(TEST_VENV)/bin/bltcli bench benchmarks/sentences.jsonl --run 'ar exact=no,yes' --run 'blt-s k=2,4,8,auto' --run 'blt-dv block=4,8' \
		--run 'blt-h block=4 trust=1' --run 'blt-d block=4 commit=sure alpha=0.7,0.9' --run auto \
		--repeats 7 --format json -o benchmarks/results/builtin-sentences.json
	$(TEST_VENV)/bin/python benchmarks/exactness.py

# installs nothing: uses what PYTHON finds, see docs/gpu.md; goes on where it was stopped
# BENCH_GPU='--large DIR --forms 1b,7b' adds random weights in the released forms
bench-gpu:
	$(PYTHON) benchmarks/gpu.py $(BENCH_GPU)

# docs/results.md, from what `make bench` and benchmarks/translation.py measured
results:
	$(TEST_VENV)/bin/python benchmarks/section.py benchmarks/results/builtin.json docs/results.md
	$(TEST_VENV)/bin/python benchmarks/section.py benchmarks/results/builtin-sentences.json docs/results.md
	$(TEST_VENV)/bin/python benchmarks/overview.py

clean:
	rm -rf $(VENV) $(TEST_VENV) build dist
