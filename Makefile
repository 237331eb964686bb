# Thin entry points: each makes the checkout ready (scripts/bootstrap does only what is missing), then runs one program.
.DEFAULT_GOAL := help
.NOTPARALLEL:

BOOTSTRAP := scripts/bootstrap
BUILD := build/cpu
VENV_PYTHON := .venv/bin/python
CXX_SOURCES = $$(find kernels csrc benchmark tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
PYTHON_SOURCES := benchmark python scripts tests examples setup.py

# make bench CONFIG=configs/other.yaml ARGS="--version v1 v2"
CONFIG ?= configs/default.yaml
ARGS ?=
# make data TEXT=file.txt VOCAB=folder; without TEXT it downloads WikiText-2, without VOCAB the vocabulary of GPT-2
TEXT ?=
VOCAB ?=

.PHONY: help bench smoke test data lint format asan fuzz op-fuzz gpu-check wheel kernels-bench peers results-table clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' Makefile

bench:  ## latency of GPT-2 with and without KV cache, into a new file in results/ (CONFIG=, ARGS=)
	@$(BOOTSTRAP) --target bench_runner
	@mkdir -p results
	$(BUILD)/bench_runner latency --config $(CONFIG) --log-file results/$(basename $(notdir $(CONFIG)))-$$(date +%Y%m%d-%H%M%S).jsonl $(ARGS)

smoke:  ## the same with a small model, in seconds
	@$(MAKE) --no-print-directory bench CONFIG=configs/smoke.yaml

test:  ## formatting, C++ tests and Python tests; all are run, one failure fails
	@$(BOOTSTRAP)
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	.venv/bin/ctest --preset cpu || status=1; \
	$(VENV_PYTHON) -m pytest || status=1; \
	exit $$status

data:  ## token files in data/ from WikiText-2, or from TEXT= (VOCAB= for a local vocabulary)
	@$(BOOTSTRAP) --no-build
	$(VENV_PYTHON) scripts/prepare_data.py $(if $(TEXT),--text "$(TEXT)") $(if $(VOCAB),--vocab "$(VOCAB)") $(ARGS)

lint:  ## check the formatting of C++ and Python, ruff's rules, and the types of the package
	@$(BOOTSTRAP) --no-build
	clang-format --dry-run -Werror $(CXX_SOURCES)
	.venv/bin/ruff check $(PYTHON_SOURCES)
	.venv/bin/ruff format --check $(PYTHON_SOURCES)
	.venv/bin/mypy

format:  ## format C++ and Python
	@$(BOOTSTRAP) --no-build
	clang-format -i $(CXX_SOURCES)
	.venv/bin/ruff check --fix $(PYTHON_SOURCES)
	.venv/bin/ruff format $(PYTHON_SOURCES)

asan:  ## C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(BOOTSTRAP) --preset asan
	.venv/bin/ctest --preset asan

fuzz:  ## fuzz the readers of untrusted files
	@$(BOOTSTRAP) --preset fuzz --target fuzz_targets
	.venv/bin/ctest --preset fuzz

op-fuzz:  ## 10,000 random calls of each operator, without and with AddressSanitizer
	@$(BOOTSTRAP) --target kvfuse_python
	KVFUSE_FUZZ_CALLS=10000 $(VENV_PYTHON) -m pytest -k random tests/python/test_op_fuzz.py tests/python/test_linear_ops.py
	@$(BOOTSTRAP) --preset asan --target kvfuse_python
	KVFUSE_FUZZ_CALLS=10000 KVFUSE_BUILD_DIR=build/asan ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$(foreach library,asan ubsan stdc++,$(shell $${CXX:-g++} -print-file-name=lib$(library).so))" \
	$(VENV_PYTHON) -m pytest -k random tests/python/test_op_fuzz.py tests/python/test_linear_ops.py

gpu-check:  ## where there is a GPU: check and measure the CUDA operators, into docs/measurements (ARGS=)
	@$(BOOTSTRAP)
	$(VENV_PYTHON) scripts/gpu_check.py $(ARGS)

wheel:  ## a wheel in dist/, built against the PyTorch in .venv
	@$(BOOTSTRAP) --no-build
	$(VENV_PYTHON) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

kernels-bench:  ## the kernels against PyTorch's own, into results/bench_kernels.json (ARGS=)
	@$(BOOTSTRAP) --target bench_kernels
	@mkdir -p results
	$(BUILD)/bench_kernels --benchmark_out=results/bench_kernels.json --benchmark_out_format=json $(ARGS)

peers:  ## ours beside llama.cpp, CTranslate2 and transformers: records and tables, in some 15 minutes (ARGS=)
	@$(BOOTSTRAP) --target kvfuse_python
	PYTHONPATH=python $(VENV_PYTHON) scripts/bench_peers.py $(ARGS)
	$(VENV_PYTHON) scripts/update_readme.py

results-table:  ## rewrite the tables of README.md and docs/measuring.md from docs/results
	@$(BOOTSTRAP) --no-build
	$(VENV_PYTHON) scripts/update_readme.py

clean:  ## remove what was built; .venv, data and results stay
	rm -rf build dist
