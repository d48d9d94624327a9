# make demo   unlearn the digit 8 from the bundled MNIST GAN and write out/demo/report.html
# make demo-animals   unlearn antlers from the bundled GAN of drawn animals and write out/demo-animals/report.html
# make test   the whole test suite           make lint   ruff, mypy, import-linter, clang-format
# make docs   the docs site into site/, strictly: no broken link, no missing page
# make ptxas  resources of the CUDA kernels against benchmarks/results/ptxas.md (needs nvcc, no GPU)
# Each sets up .venv on a fresh machine, and uses it again the next time.

PYTHON ?= python3
VENV ?= .venv
OUT ?= out/demo
DIGIT ?= 8
FEATURE ?= antlers
PYTEST_ARGS ?= -n auto --dist worksteal
BIN := $(VENV)/bin

# In a checkout, CUDA code is built for the GPU that is there; without one, for two generations, to see that it compiles.
# `pip install .` builds the whole list of cmake/cuda.cmake.
GPU_ARCH := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u | paste -sd ';' -)
export ATU_CUDA ?= auto
export ATU_CUDA_ARCHITECTURES ?= $(or $(GPU_ARCH),80-real;90)

BUILD_INPUTS := pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard cmake/*) $(wildcard csrc/*/*)

.PHONY: demo demo-animals test lint docs ptxas format clean

demo: $(VENV)/installed
	$(BIN)/atu demo mnist --class $(DIGIT) --out $(OUT)

demo-animals: $(VENV)/installed
	$(BIN)/atu demo animals --feature $(FEATURE) --out $(OUT)-animals

# The workers share the cores: more threads would wait for one another.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format --dry-run -Werror

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

ptxas: $(VENV)/installed
	$(BIN)/python benchmarks/ptxas_report.py --check --jobs 2

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format -i

$(VENV)/installed: $(BUILD_INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[demo,docs,label,onnx,test]'
	touch $@

clean:
	rm -rf $(VENV) build out site
