# make demo, make test and make check do everything on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/vdvae-repr demo --out demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not network"

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test
	$(BIN)/python docs/notebooks/execute.py
	benchmarks/gpu/run.sh --smoke
	$(BIN)/python benchmarks/reliability/run.py --quick
