# Every target creates .venv and installs what it needs.
PROBLEM ?= digits-mlp
DEMO    ?= demo/$(PROBLEM)
PYTHON  ?= python3
BIN     := .venv/bin
PROFILE ?= quick
RESULTS ?= runs/reproduce-all-$(PROFILE)

# What 'make attack' is given: for how long, and more words, see PYTHONPATH=tests python -m attacks --help
ATTACK_MINUTES ?= 5
ATTACK  ?=

# Tests and studies start Python hundreds of times, which would compile this package anew each time.
export PYTHONDONTWRITEBYTECODE =

.NOTPARALLEL: # what is quick to fail comes first
.PHONY: demo reproduce bench check test suite attack lint types docs clean

demo: .venv/.lab
	$(BIN)/sngd compare $(PROBLEM) --methods sgd,sngd,s-sngd --seeds 3 --out $(DEMO)

reproduce: .venv/.lab
	$(BIN)/sngd reproduce all --profile $(PROFILE) --out $(RESULTS)

# In one and a half to four minutes: what to run before each commit.
check: lint types
	$(BIN)/pytest -m "not slow"

test: lint types suite

# Tracing lines makes tests a third slower: coverage is that of the fast ones, and they fail before the slow ones begin.
# Of these each process begins with a half of its own, so that few are the libraries, runs and studies made in both.
suite: .venv/.installed
	$(BIN)/pytest -m "not slow" --cov
	$(BIN)/pytest -m slow --dist worksteal

attack: .venv/.installed
	PYTHONPATH=tests $(BIN)/python -m attacks --minutes $(ATTACK_MINUTES) $(ATTACK)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed
	$(BIN)/mypy

# A quarter of an hour on a machine that does nothing else: results/bench.json, and what docs/performance.md shows of it.
bench: .venv/.lab
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/sngd bench step --json results/bench.json
	$(BIN)/sngd bench train --json results/bench.json
	$(BIN)/python docs/draw_performance.py

# Pictures and tables are made anew from the code and from results/; then the site, without network and with its links checked.
docs: .venv/.docs
	$(BIN)/python docs/draw_architecture.py
	$(BIN)/python docs/draw_norms.py
	$(BIN)/python docs/draw_performance.py
	$(BIN)/python docs/write_methods.py
	$(BIN)/python docs/write_gallery.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/.lab: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"sngd needs Python 3.11 or newer, this is {v[0]}.{v[1]}; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab]'
	touch $@

.venv/.docs: .venv/.lab
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab,docs]'
	touch $@

.venv/.installed: .venv/.lab
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ecosystem]'
	touch $@

clean:
	rm -rf .venv demo build site src/*.egg-info
