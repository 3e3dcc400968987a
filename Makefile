# Two commands on a fresh machine with python3 >= 3.11: `make demo` and `make test`. Each makes .venv on first use.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo_output
BIN := $(VENV)/bin
TORCH_ONLY := --index-url https://download.pytorch.org/whl/cpu $$(grep -o '^torch==[0-9.]*' requirements-dev.txt)

# What looks at pages: Sphinx, a browser, the notebook. Apart, so that `make test` is the code alone.
DOCS_TESTS := $(addprefix tests/,test_docs.py test_docs_content.py test_docs_examples.py test_notebook.py test_report_in_browser.py)
# A file's tests share what they have prepared, so a file stays in one process; more than four would fill the memory.
IN_PARALLEL := -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder

# On a CPU, the demo trains 1.4 times as fast with memory in large pages (docs/speed.md). Other systems ignore it.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo smoke test test-long test-docs test-slow test-beam test-tpu-aot lint format docs bench clean

# In a run of minutes, compiling takes longer than faster programs save: with less optimisation, 214 s in place of 236.
demo smoke: export XLA_FLAGS ?= --xla_backend_optimization_level=1

# Generates a multi-view data set, prepares it, pre-trains on it, and leaves pictures in $(DEMO)/run/pictures.
demo: $(VENV)/installed
	$(BIN)/python -m data.synthetic --output="$(DEMO)"/raw --takes=640 --setups=4 --subjects=20 --rooms=plain \
	  --actor_share=0.8 --fps=10 --resolution=40x40 --sheet
	$(BIN)/python -m data.prepare --dataset=synthetic --input="$(DEMO)"/raw --output="$(DEMO)"/prepared --short_side=32
	$(BIN)/python run.py --config=configs/demo.py --workdir="$(DEMO)"/run --config.data.dir="$(DEMO)"/prepared

# The shortest way from videos to an export, to try another Python: make smoke PYTHON=python3.12 VENV=.venv-3.12
smoke: $(VENV)/installed
	rm -rf $(VENV)/smoke
	$(BIN)/python -m data.synthetic --output=$(VENV)/smoke/raw --takes=16 --rooms=plain --fps=10 --resolution=40x40
	$(BIN)/python -m data.prepare --dataset=synthetic --input=$(VENV)/smoke/raw --output=$(VENV)/smoke/prepared --short_side=32
	$(BIN)/python run.py --config=configs/demo.py --workdir=$(VENV)/smoke/run --config.data.dir=$(VENV)/smoke/prepared \
	  --config.total_steps=4 --config.global_batch_size=8 --config.eval.batch_size=8
	$(BIN)/python -m mv2mae_jax.torch_export --workdir=$(VENV)/smoke/run --format=hf --output=$(VENV)/smoke/exported

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not long and not slow" $(IN_PARALLEL) $(addprefix --ignore=,$(DOCS_TESTS))

# Whole runs: killed and resumed, of several processes, on a full disk, fine-tuned and probed.
test-long: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "long and not slow" $(IN_PARALLEL)

test-docs: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not slow" $(DOCS_TESTS)

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

# Apache Beam decides the versions of numpy and protobuf, so it lives in an environment of its own.
test-beam:
	$(MAKE) VENV=.venv-beam .venv-beam/created
	.venv-beam/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-beam.txt
	.venv-beam/bin/python -m pytest tests/test_beam.py

# With libtpu installed `import jax` looks for a TPU, so the TPU compiler lies beside the environment.
test-tpu-aot: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target=.venv-libtpu \
	  "$$(grep -o '^libtpu[^ ]*' requirements-tpu-aot.txt)"
	PYTHONPATH=.venv-libtpu $(BIN)/python -m pytest -m slow tests/test_topology.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages in docs/ as HTML: docs/_build/html/index.html.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.prepare
	$(BIN)/python -m benchmarks.dense_2d
	$(BIN)/python -m benchmarks.attention
	$(BIN)/python -m benchmarks.gelu

clean:
	rm -rf "$(VENV)" .venv-3.12 "$(DEMO)" docs/_build

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "python3 lacks its venv module (Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@touch $@

$(VENV)/installed: $(VENV)/created requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed requirements-docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

# PyTorch's own index has builds for CPUs, a fifth of the size of PyPI's for Linux; without it, PyPI's comes with the rest.
$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt requirements-torch.txt requirements-docs.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 0 $(TORCH_ONLY) \
	  || echo "Not taken from download.pytorch.org; looking for torch elsewhere."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
