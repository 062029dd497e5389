# A fresh machine needs git, make and one of Python 3.11, 3.12, 3.13.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
ARGS :=
# Among as many processes as there are cores, a file whole, so that what its tests share is made once.
SHARED := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON = $(firstword $(foreach name,python3.12 python3.13 python3.11 python3 python,\
	$(shell $(name) -c '$(FITS)' 2>/dev/null && echo $(name))))

.PHONY: demo test fuzz bench pins clean

demo: $(INSTALLED)
	$(BIN)/mist sweep quickstart $(ARGS)

test: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest $(SHARED) $(ARGS)

# The random mixes again, from a new seed every time and many more of them.
fuzz: $(INSTALLED)
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=fuzz $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m pytest -s -o python_files='bench_*.py test_*.py' tests/bench $(ARGS)

# Everything is pinned, the build tools too; a change of either file installs again.
$(INSTALLED): pyproject.toml pins.txt
	@if [ ! -x $(BIN)/python ]; then \
	  python="$(PYTHON)"; \
	  if [ -z "$$python" ]; then \
	    echo "make: MIST needs Python 3.11, 3.12 or 3.13 with venv, and found none on the PATH" >&2; \
	    echo "make: install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	    exit 1; \
	  fi; \
	  echo "creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip # a .venv of uv has no pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement pins.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# The newest versions that fit pyproject.toml, for every Python and system at once.
pins: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --upgrade \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file pins.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
