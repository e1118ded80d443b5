# make demo     the whole loop on the shipped base models
# make test     format, lint, the tests
# make format   applies what it can
# make bench    our speed beside that of transformers: the short table (tests/bench.py has more)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test format bench clean

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/dev: .venv/ready requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

# The cells of SFT are shared out over two ranks of one thread each. Two ranks lock no faster than
# two threads (docs/NOTES.md).
demo: .venv/ready
	$(BIN)/python lock.py --task code --resume
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 elicit_sft.py --task code --k 1 4 8 32 128
	$(BIN)/python evaluate.py out/code/locked out/code/sft/k8-seed0 --samples 2 --plot

test: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadgroup

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev
	$(BIN)/python tests/bench.py

clean:
	rm -rf .venv out
