# Every target sets up what it needs. PYTHON names the interpreter for .venv: make book PYTHON=python3.12
PYTHON ?= python3
PORT ?= 8000

BIN := .venv/bin
SITE := _build/html
PINS := requirements.txt constraints.txt pyproject.toml
PACKAGE_TESTS := anatomy arithmetic batchnorm blocks checkpoints claims cracks data distributed experiments files \
  fingerprint gradcam gradients gradient_grid images initialization networks pictures records shapes splits training
PAGES := $(shell sed -n -e 's/^root: *//p' -e 's/^ *- file: *//p' _toc.yml)

# Threads that wait for each other must not keep a core busy: on a loaded machine a chapter would take minutes.
export OMP_WAIT_POLICY := PASSIVE
# The last digits of a training depend on what computes, and with how many threads: the processor with one, everywhere.
# Two chapters run at a time anyway.
book notebooks derived test colab: export OMP_NUM_THREADS := 1
book notebooks derived test colab: export CUDA_VISIBLE_DEVICES :=

# An interrupted set-up may have left a Python without pip.
HAS_PIP := $(BIN)/python -m pip --version >/dev/null 2>&1

fail = { echo "$(1)" >&2; exit 1; }

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help book notebooks derived test package colab links bench serve clean check-python sources

help:
	@echo "make book       install what the book needs into .venv, run every chapter, write the site to $(SITE)"
	@echo "make notebooks  derive notebooks/*.ipynb, with outputs, from the chapters"
	@echo "make test       build the book, then check the code, the package, every page in a browser, every notebook's outputs"
	@echo "make package    run the package's own tests with PYTHON, which must have the package"
	@echo "make colab      run every notebook with Colab's versions of what shows it"
	@echo "make links      ask every outside address in the book whether it still answers (needs the network)"
	@echo "make bench      print speed and memory as ratios to other implementations"
	@echo "make serve      build the book and serve it at http://localhost:$(PORT) (other port: make serve PORT=8001)"
	@echo "make clean      remove .venv and everything the other targets made"

# Sphinx tells a warning only when it reads a page, so a build after a failed one has to read all pages again.
define build
@$(BIN)/jupyter-book --version | grep -q ': 1\.' || \
  $(call fail,The book needs Jupyter Book 1.x: run 'make clean' and start again.)
@test -f _build/complete || rm -rf _build/.doctrees
@rm -f _build/complete
@$(BIN)/jupyter-book build . -n -W --keep-going $(1) || \
  $(call fail,The book has errors or warnings: mend the lines above that name a file and say WARNING or ERROR and run 'make notebooks'.)
@touch _build/complete
endef

book: .venv/installed _build/sources
	$(call build)
	@for page in $(PAGES); do test -f $(SITE)/$$page.html || \
	  $(call fail,_toc.yml names $$page but $(SITE)/$$page.html was not made.); done
	@echo "The book is built. Open $(CURDIR)/$(SITE)/index.html"

derived: .venv/installed _build/sources
	$(call build,--builder custom --custom-builder notebooks)

notebooks: derived
	@rm -rf _build/new && mkdir _build/new && cp _build/notebooks/*.ipynb _build/new
	@rm -rf $@ && mv _build/new $@

test: book derived .venv-colab/installed
	$(BIN)/python tests/browser.py
	$(BIN)/ruff check .
	$(BIN)/codespell .
	$(BIN)/pytest
	$(BIN)/python tests/compare.py notebooks/*.ipynb

# For any Python that has the package: make package PYTHON=python3.13
package:
	@$(PYTHON) -c 'import hypothesis, playwright, pytest, resbook, yaml' || \
	  $(call fail,First: $(PYTHON) -m pip install . -r tests/package.txt)
	$(PYTHON) -m pytest $(PACKAGE_TESTS:%=tests/test_%.py)

colab: .venv-colab/installed
	.venv-colab/bin/python tests/compare.py notebooks/*.ipynb

links: book
	$(BIN)/jupyter-book build . --builder linkcheck

bench: .venv/installed
	$(BIN)/python benchmarks/run.py

serve: book
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(SITE)

clean:
	rm -rf .venv .venv-colab _build .pytest_cache .ruff_cache .hypothesis code/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: $(PINS) | check-python
	$(HAS_PIP) || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt || \
	  $(call fail,What the book needs could not be installed: see ERROR above. Is there a network?)
	@touch $@

# Colab's versions of what shows a notebook, each in front of the one in .venv; everything else is found there.
.venv-colab/installed: tests/colab.txt .venv/installed
	rm -rf .venv-colab
	$(BIN)/python -m venv .venv-colab
	.venv-colab/bin/python -m pip install --disable-pip-version-check -q -r tests/colab.txt
	where='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  echo "import site; site.addsitedir('$$($(BIN)/python -c "$$where")')" > "$$(.venv-colab/bin/python -c "$$where")/book.pth"
	@touch $@

check-python:
	@$(HAS_PIP) || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  $(call fail,The book needs Python 3.11 or newer. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11)
	@$(HAS_PIP) || $(PYTHON) -c 'import ensurepip, venv' || \
	  $(call fail,'$(PYTHON)' cannot make a virtual environment. On Debian or Ubuntu: sudo apt-get install python3-venv)

# The execution cache knows a chapter's code and nothing else: drop it, and the pages made from it, when the package,
# the site's extension or a pin is not what it was. Checksums and not times, which a fresh checkout sets anew.
_build/sources: sources | .venv/installed
	@mkdir -p _build
	@{ $(BIN)/python --version; find code/resbook _ext -type f ! -path '*/__pycache__/*' | sort | xargs cksum; cksum $(PINS); } > $@.new
	@cmp -s $@.new $@ || rm -rf _build/.jupyter_cache _build/.doctrees
	@mv $@.new $@
