# make book | test | browser | lab | clean     The environment in .venv is made when it is first needed.
# make repository URL=...            sets the address of the repository everywhere; BRANCH=... the branch
# make colab [CHAPTERS="05 09"]      runs each notebook alone, with the versions of Colab's image (scripts/colab.txt)
# make second-device [CHAPTERS=...]  runs chapters as where there is a GPU, on a device that stands for one
# make release                       builds dist/*.whl and dist/*.tar.gz, and tries both in clean environments
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# A thread that waits for a busy core sleeps: spinning made small networks up to 60 times slower on a shared machine.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: book test browser lab clean repository second-device colab release

# A failed build forgets what it read, so that the next one shows the same warnings again.
book: .venv/.installed
	$(BIN)/jupyter-book build . -W -n --keep-going || { rm -rf _build/.doctrees; exit 1; }

# Both halves run, and either one failing fails.
test: .venv/.installed
	@failed=0; set -x; \
	$(BIN)/python -m pytest -n 2 --doctest-modules tests companion || failed=1; \
	$(BIN)/python -m pytest -n 2 --dist loadscope --nbval --nbval-current-env --nbval-cell-timeout=300 \
		--nbval-sanitize-with tests/nbval.cfg book || failed=1; \
	exit $$failed

# After `make book`: headless Chromium reads every page and moves every control. It needs Chromium and node 18.17 or newer.
browser: tests/browser/node_modules/.package-lock.json
	cd tests/browser && npm test

tests/browser/node_modules/.package-lock.json: tests/browser/package-lock.json
	cd tests/browser && npm ci --no-fund --no-audit
	touch $@

lab: .venv/.installed
	$(BIN)/jupyter lab --notebook-dir=book

repository:
	$(PYTHON) scripts/repository.py "$(URL)" $(if $(BRANCH),--branch "$(BRANCH)")

second-device: .venv/.installed
	$(BIN)/python scripts/second_device.py $(CHAPTERS)

# These two make environments of their own, under _build.
colab:
	$(PYTHON) scripts/colab.py $(CHAPTERS)

release:
	$(PYTHON) scripts/release.py

clean:
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache
	find companion tests scripts book benchmarks -name __pycache__ -prune -exec rm -rf {} +

.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@# k-diffusion's own list asks for torchvision, wandb and more, which its samplers do not need
	$(BIN)/python -m pip install --quiet --no-deps k-diffusion==0.1.1.post1
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
