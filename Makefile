# Everything runs in .venv, made here with the versions in constraints.txt.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test test-fast test-real-model test-gpu test-vllm test-llama-cpp test-sglang test-verl test-peers test-lowest models-table check docs bench package format clean

quickstart: $(READY)  ## set up, then run the built-in recipe: a model gets better in minutes
	$(BIN)/topr run quickstart -o runs/quickstart

test: $(READY)  ## set up, then run the tests (offline, on the CPU)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

test-fast: $(READY)  ## the tests without the slow ones
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not slow"

# The model is fetched to .real-models by the script beside the clone, or put there by hand:
# .real-models/smollm2-135m-instruct/model.gguf.
test-real-model: $(READY)  ## SmolLM2-135M on GSM8K questions through every stage (CPU, 4 GB, minutes)
	REAL_MODELS=$(abspath .real-models) $(BIN)/python -m pytest -n 0 tests/real_model

# Compiling for a GPU warns of torch's own code, so warnings are no errors here.
test-gpu:  ## the tests on a CUDA device, in the environment of PYTHON, which has the GPU build of torch
	HF_HUB_OFFLINE=1 TORCHINDUCTOR_COMPILE_THREADS=1 $(PYTHON) -m pytest -n 4 --dist load -o filterwarnings= tests/gpu

# All versions are pinned, and nothing else is installed: vLLM's CPU build names torchvision,
# torchaudio and torchcodec, whose CUDA builds keep it from being imported.
test-vllm: .venv-vllm/.ready  ## the tests of vLLM's engine and server on a real vLLM (CPU, 4 GB, minutes)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest -n 0 tests/on_vllm

.venv-vllm/.ready: tests/on_vllm/requirements.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q --no-deps -r tests/on_vllm/requirements.txt
	.venv-vllm/bin/python -m pip install -q --no-deps -e .
	touch $@

# llama.cpp comes with the sources of its Python binding. Needs a C++ compiler and cmake.
LLAMA_CPP := .llama-cpp/vendor/llama.cpp
LLAMA_CPP_PYTHON := 0.3.36
test-llama-cpp: $(READY) .llama-cpp/.ready  ## the server engine on llama.cpp's own server, built here (ten minutes)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 LLAMA_CPP=$(abspath $(LLAMA_CPP)) $(BIN)/python -m pytest -n 0 tests/on_servers

.llama-cpp/.ready: | $(READY)
	mkdir -p .llama-cpp
	$(BIN)/python -m pip download -q --no-deps --no-binary llama-cpp-python -d .llama-cpp llama-cpp-python==$(LLAMA_CPP_PYTHON)
	tar -xzf .llama-cpp/llama_cpp_python-$(LLAMA_CPP_PYTHON).tar.gz --strip-components 1 -C .llama-cpp
	cmake -S $(LLAMA_CPP) -B $(LLAMA_CPP)/build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
	  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
	  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
	cmake --build $(LLAMA_CPP)/build --target llama-server -j 2
	touch $@

test-sglang: $(READY) .venv-sglang/.ready  ## the server engine on SGLang's server (CPU, 5 GB, minutes)
	SGLANG=$(abspath .venv-sglang/bin/python) SGLANG_USE_CPU_ENGINE=1 \
	  OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 0 tests/on_servers

.venv-sglang/.ready: tests/on_servers/requirements-sglang.txt tests/on_vllm/requirements.txt
	test -x .venv-sglang/bin/python || $(PYTHON) -m venv .venv-sglang
	.venv-sglang/bin/python -m pip install -q --no-deps -r tests/on_servers/requirements-sglang.txt
	touch $@

# verl asks for an older transformers and another antlr than topr: an environment of its own, with
# topr in it as its users install it. The warnings of verl and ray are not ours to mend.
test-verl:  ## the losses for verl, in verl's own registry and configuration
	test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	.venv-verl/bin/python -m pip install -q -r tests/integrations/requirements-verl.txt
	.venv-verl/bin/python -m pip install -q --no-deps -e .
	OMP_NUM_THREADS=1 .venv-verl/bin/python -m pytest -n 0 -o filterwarnings= tests/integrations/test_verl.py

# AReaL without its training stack: one file of it is read.
test-peers: test-verl  ## objectives beside the losses of TRL, verl and AReaL
	.venv-verl/bin/python -m pip install -q --no-deps areal==1.0.4
	OMP_NUM_THREADS=1 .venv-verl/bin/python -m pytest -n 0 -o filterwarnings= tests/peers

# torch is the one of constraints.txt: older ones for a CPU are not on PyPI.
LOWEST_TESTS := $(addprefix tests/,test_public_names.py objectives test_hub.py store models \
  report/test_report_mathml.py grading/test_grading_math.py grading/test_grading_pool.py \
  training/test_adapters.py training/test_trainer.py engines/test_transformers.py \
  engines/test_server.py cli/test_help.py cli/test_wrong_usage.py)
test-lowest:  ## the lowest versions that pyproject.toml allows: import, dry run, some tests (minutes)
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	grep '^torch==' constraints.txt > .venv-lowest/torch.txt
	.venv-lowest/bin/uv pip compile -q -p .venv-lowest/bin/python --resolution lowest-direct \
	  --extra gguf -c .venv-lowest/torch.txt -o .venv-lowest/lowest.txt pyproject.toml
	.venv-lowest/bin/python -m pip install -q -c .venv-lowest/lowest.txt -e '.[gguf]' \
	  pytest pytest-timeout pytest-xdist hypothesis duckdb matplotlib
	.venv-lowest/bin/topr run quickstart --dry-run --no-measure
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest -o filterwarnings= $(LOWEST_TESTS)

models-table: $(READY)  ## write docs/tables/architectures.csv anew: every architecture through trainer and engine
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/architectures.py

check: $(READY)  ## lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## build the documentation into site/
	$(BIN)/python -m pip install -q -c constraints.txt --group docs
	$(BIN)/python docs/site_pages.py .site-pages
	$(BIN)/zensical build --strict --clean

package: $(READY)  ## a wheel in dist/, and whether it holds the whole package (builds with what PyPI has)
	rm -rf dist
	$(BIN)/python -m pip wheel -q --no-deps -w dist .
	$(BIN)/python .ci/check_wheel.py dist/*.whl

bench: $(READY)  ## topr beside TRL on the same sequences: an hour or so on two cores
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install -q -c constraints.txt -r benchmarks/training/requirements-trl.txt
	mkdir -p runs
	$(BIN)/python benchmarks/training/run.py --peer-python .venv-trl/bin/python -o runs/speed
	$(BIN)/python benchmarks/generation.py

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install -q -U pip==26.3
	$(BIN)/python -m pip install -q -c constraints.txt -e . --group dev
	touch $@

clean:
	rm -rf $(VENV) .venv-trl .venv-vllm .venv-verl .venv-sglang .venv-lowest .llama-cpp .real-models site .site-pages .mypy_cache .pytest_cache .ruff_cache
