# make demo, make test, make docs and make check do everything on a fresh machine; make claims takes hours.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs check claims

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[brain,dev,docs,export]'
	touch $@

demo: .venv/installed
	$(BIN)/vdvae-repr demo --out demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not network"

docs: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

claims: .venv/installed
	$(BIN)/python benchmarks/claims/run.py --size local

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test
	$(MAKE) docs
	$(BIN)/python docs/notebooks/execute.py
	benchmarks/gpu/run.sh --smoke
	$(BIN)/python benchmarks/reliability/run.py --quick
	$(BIN)/python benchmarks/claims/run.py --size smoke
