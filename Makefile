# make demo   set everything up, run the whole path on the simulated platform, answer a query, recommend
# make test   set everything up, run every test
# make check  formatting, lint, types, import rules
# make clean  remove what the above made

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= runs/demo
# Where there is no GPU, PyTorch's CPU build saves gigabytes; set this to PyTorch's own CPU index.
TORCH_INDEX ?=

BIN   := $(VENV)/bin
READY := $(VENV)/.ready

export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0
# Ray lowers the priority of its workers, which makes a first compilation look hung.
export RAY_worker_niceness := 0
# OpenMP threads that spin while they wait starve whatever else runs; see jobs/__init__.py.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test unit check setup clean help

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(READY)
	@echo "== the whole path on the simulated platform, into $(OUT)"
	$(BIN)/python -m jobs.pipeline --out $(OUT) --set source.num_items=2000
	@echo "== report: $(OUT)/report/report.html"

# hundreds of processes of Ray import the project: the first leaves its bytecode to all others
test: export PYTHONDONTWRITEBYTECODE :=
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

unit: $(READY)
	$(BIN)/python -m pytest -m "not ray and not slow"

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --warnings
	$(BIN)/lint-imports

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Raycall needs Python 3.11 or newer; set PYTHON=python3.x")'
	@echo "== virtual environment in $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== packages (about 2 GB; minutes)"
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-c constraints.txt "torch==2.13.0" setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cpu,s3,tune,quality,dev]"
	@echo "== DeepSpeed's CPU operators (compiled once, about a minute)"
	$(BIN)/python -m rec.train.deepspeed --prebuild
	@touch $(READY)

clean:
	rm -rf $(VENV) runs *.egg-info .pytest_cache .ruff_cache
