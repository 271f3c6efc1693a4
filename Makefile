# Everything runs in an environment of its own, made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The Pythons that pyproject.toml names, and those of them that run here, lowest first.
SUPPORTED = $(shell sed -n 's/.*Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)
AVAILABLE = $(foreach version,$(SUPPORTED),$(if $(shell .ci/python $(version)),$(version)))
OWN = $(shell $(BIN)/python -c 'import sys; print("{}.{}".format(*sys.version_info))')
# Two at a time; modules and classes stay whole, for what their tests share is slow to make.
PAIRED = --numprocesses 2 --dist loadscope -p no:benchmark
# On the lowest versions, and on the newest Python, which has the newest, without what depends on the system alone; on
# Pythons in between, nor on the packages.
ENDS = -m "not slow and not once" $(PAIRED)
BETWEEN = -m "not slow and not once and not packages" $(PAIRED)

.PHONY: demo test test-pythons test-lowest test-jwst lint docs pictures notebooks dist fuzz chaos soak bench clean

demo: $(VENV)/.ready
	$(BIN)/skylevel demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -m "not slow" $(PAIRED)
	$(BIN)/python -m pytest -m slow

# Every other Python that runs here.
test-pythons: $(VENV)/.ready
	for version in $(filter-out $(OWN),$(AVAILABLE)); do $(MAKE) test-python-$$version || exit 1; done

# One of them, such as 3.12, in an environment of its own.
test-python-%: $(VENV)/.ready
	python=$$(.ci/python $*) && $(BIN)/uv venv --quiet --clear --python "$$python" $(VENV)-$*
	$(BIN)/uv pip install --quiet --python $(VENV)-$* --constraint constraints.txt --editable '.[dev]'
	$(VENV)-$*/bin/mypy --python-version $*
	$(VENV)-$*/bin/python -m pytest $(if $(filter $*,$(lastword $(AVAILABLE))),$(ENDS),$(BETWEEN))

# The lowest version of every dependency, on the lowest Python.
test-lowest: $(VENV)/.ready
	python=$$(.ci/python $(firstword $(AVAILABLE))) && $(BIN)/uv venv --quiet --clear --python "$$python" $(VENV)-lowest
	$(BIN)/uv pip install --quiet --python $(VENV)-lowest --resolution lowest-direct --editable '.[dev]'
	$(VENV)-lowest/bin/python .ci/floors.py
	$(VENV)-lowest/bin/python -m pytest $(ENDS)

# The JWST pipeline, which CI leaves out.
test-jwst: $(VENV)/.ready
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-jwst
	$(BIN)/uv pip install --quiet --python $(VENV)-jwst --constraint constraints.txt --editable '.[dev,jwst]'
	$(VENV)-jwst/bin/python -m pytest tests/test_jwst_pipeline.py

lint: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck deploy/slurm/*.sbatch deploy/pbs/*.pbs deploy/container/make-certificates .ci/run .ci/python
	$(BIN)/hadolint deploy/container/Dockerfile

# The site, in docs/_build/html. A warning is an error.
docs: $(VENV)/.ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d docs/_build/doctrees docs docs/_build/html

# The site's and the README's pictures, drawn from the demo.
pictures: demo
	$(BIN)/python docs/pictures.py skylevel-demo
	$(BIN)/python docs/screens.py skylevel-demo

# The notebooks, run and stored with what they gave.
notebooks: $(VENV)/.ready
	$(BIN)/python notebooks/execute.py

# What would be published, and the demo run from the wheel alone, away from this checkout.
dist: $(VENV)/.ready
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-wheel
	$(BIN)/uv pip install --quiet --python $(VENV)-wheel --constraint constraints.txt dist/*.whl
	wheel="$$(realpath $(VENV)-wheel)/bin/skylevel" && away=$$(mktemp -d) && cd "$$away" \
	  && { "$$wheel" demo --quiet; status=$$?; rm -rf "$$away"; exit $$status; }

# Readers against damaged files, for ten minutes.
fuzz: $(VENV)/.ready
	SKYLEVEL_FUZZ_SECONDS=600 $(BIN)/python -m pytest tests/test_fuzz.py

# A hundred rounds of kill -9, of client, workers and scheduler.
chaos: $(VENV)/.ready
	SKYLEVEL_CHAOS_ROUNDS=100 $(BIN)/python -m pytest tests/test_chaos.py -k killed

# Two thousand exposures, with workers killed: whether memory stays.
soak: $(VENV)/.ready
	SKYLEVEL_SOAK_EXPOSURES=2000 $(BIN)/python -m pytest tests/test_chaos.py -k soak

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/run.py

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "skylevel needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(VENV) --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-3.* $(VENV)-lowest $(VENV)-jwst $(VENV)-wheel skylevel-demo dist
	rm -rf docs/_build docs/benchmarks docs/deploy docs/notebooks
