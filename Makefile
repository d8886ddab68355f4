# `make` lists the targets. Settings, as in `make test PYTHON=python3.13`:
#   PYTHON                 the interpreter of .venv; default: the first Python >= 3.11 on the PATH
#   VENV                   where the virtual environment is; default: .venv
#   TORCH_SPEC             arguments of `pip install` that bring the torch to use, installed before everything else,
#                          such as TORCH_SPEC="torch --index-url URL-OF-A-CPU-ONLY-INDEX"
#   SYSTEM_SITE_PACKAGES   1: .venv sees the packages of PYTHON, so that a torch installed there is used
#   DEMO_ARGS, PYTEST_ARGS, TORTURE_ARGS, PEERS_ARGS
#                          further arguments of `make demo`, of the pytest of `make test`, of `make torture` and of `make bench-peers` and `bench-peers-remote`
#   WORKERS                processes among which `make test` shares out the Python tests, one thread each; default: 2
#   CASES                  how many cases of each property `make test-long` tries; default: 200
#   FUZZ_SECONDS           how long `make fuzz` feeds each parser; default: 60
#   SCHEDULES              how many orders of threads of each kind `make shuttle` tries; default: 20000
#   LAB_OUT                where `make sweep` writes; default: lab-out
#   SWEEP_ARGS             further arguments of the sweep of `make sweep`, such as "--seeds 7,42,91"
#   EXPERIMENTS            which files `make experiments` runs; default: all of experiments/ that are for it
#   TOYS                   which toys `make measure` runs; default: all
#   PEERS_VENV             where `make bench-peers` installs what kvlab is compared with; default: .venv-peers

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
VENV ?= .venv
PEERS_VENV ?= .venv-peers
TORCH_SPEC ?=
SYSTEM_SITE_PACKAGES ?=
DEMO_ARGS ?=
TORTURE_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
SCHEDULES ?= 20000
FUZZ_SECONDS ?= 60
CASES ?= 200
FUZZ_TARGETS := record_header segment index_rows export_frame costs
PEERS_ARGS ?=
LAB_OUT ?= lab-out
SWEEP_ARGS ?=
TOYS ?=
EXPERIMENTS ?= $(sort $(filter-out experiments/strategies.toml,$(wildcard experiments/*.toml)))

VENV_FLAGS ?= $(if $(filter 1 yes true,$(SYSTEM_SITE_PACKAGES)),--system-site-packages)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUST_SOURCES := Cargo.toml Cargo.lock pyproject.toml core/Cargo.toml python/Cargo.toml \
	$(shell find core/src python/src -name '*.rs')

# Clippy, cargo doc and cargo test meet the same interpreter as maturin; without it pyo3 would take any python3.
export PYO3_PYTHON := $(abspath $(BIN)/python)

.PHONY: help
help:  ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Settings (PYTHON, TORCH_SPEC, SYSTEM_SITE_PACKAGES, ...) are at the head of the Makefile."

.PHONY: demo
demo: $(VENV)/.stamp-demo $(VENV)/.stamp-built  ## Restore a real model's prompt from NVMe in a new process (DEMO_ARGS=--quick)
	$(BIN)/python toys/capstone.py $(DEMO_ARGS)

.PHONY: test
test: test-rust test-python  ## Run every test, Rust and Python; nothing skips

# The extension has no Rust tests. Two runs over one package share what they build of its dependencies.
.PHONY: test-rust
test-rust: $(VENV)/.stamp-venv  ## Run the Rust tests and doctests
	cargo test -p kvlab-core --locked
	cargo test -p kvlab-core --features shuttle --lib --locked models::

.PHONY: test-long
test-long:  ## Run the properties of L3 with many cases (CASES=200)
	PROPTEST_CASES=$(CASES) cargo test --release --locked -p kvlab-core \
		--test disk_power --test disk_faults --test disk_damage --test disk_lifetime --test disk_model --test store_on_disk

.PHONY: shuttle
shuttle: $(VENV)/.stamp-venv  ## Try many orders of threads on the models of core/src/models (SCHEDULES=20000)
	KVLAB_SCHEDULES=$(SCHEDULES) cargo test -p kvlab-core --features shuttle --lib --locked models::

.PHONY: test-python
test-python: $(VENV)/.stamp-test $(VENV)/.stamp-built wheel  ## Run the Python tests with every extra and the model
	$(BIN)/python -c "from kvlab import models; print('model:', models.resolve('smollm2-135m'))"
	OMP_NUM_THREADS=1 PYTHONPATH=tests KVLAB_DIST=$(abspath dist) \
		$(BIN)/python -m pytest -p no_skip -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: bench
bench: $(VENV)/.stamp-test $(VENV)/.stamp-built  ## Run the benches: criterion, then the same through Python
	cargo bench --workspace --locked
	$(BIN)/python benches/python/tree.py
	$(BIN)/python benches/python/restore.py
	$(BIN)/python benches/python/break_even.py
	$(BIN)/python benches/python/remote_arms.py
	$(BIN)/python benches/python/remote_faults.py

.PHONY: smoke
smoke: $(VENV)/.stamp-built  ## Run the small programs of the policy lab
	$(BIN)/python examples/basic_simulation.py
	$(BIN)/python examples/compare_policies.py

.PHONY: sweep
sweep: $(VENV)/.stamp-plot $(VENV)/.stamp-built  ## Run the default sweep of the policy lab and its ablation of regret
	$(BIN)/python -m kvlab sim sweep --mode page --out $(LAB_OUT)/default_sweep $(SWEEP_ARGS)
	$(BIN)/python -m kvlab sim ablate --out $(LAB_OUT)/regret_ablation

.PHONY: plots
plots: $(VENV)/.stamp-plot $(VENV)/.stamp-built  ## Draw the plots and reports of `make sweep` anew
	$(BIN)/python -m kvlab sim plots $(LAB_OUT)/default_sweep
	$(BIN)/python -m kvlab sim plots $(LAB_OUT)/regret_ablation

.PHONY: findings
findings: $(VENV)/.stamp-plot $(VENV)/.stamp-built  ## Make artifacts/ anew: what docs/policy-lab.md tells (KVLAB_TRACES=FOLDER)
	$(BIN)/python scripts/lab_pages.py
	$(BIN)/python scripts/lab_traces.py

.PHONY: fleet
fleet: $(VENV)/.stamp-plot $(VENV)/.stamp-built  ## Simulate the fleets of docs/remote/06_sizes.md anew (KVLAB_TRACES=FOLDER)
	$(BIN)/python scripts/lab_fleet.py
	$(BIN)/python scripts/fill_numbers.py

.PHONY: measure
measure: $(VENV)/.stamp-test $(VENV)/.stamp-built  ## Measure anew what the course tells: docs/measurements (TOYS="attention roofline" for some)
	$(BIN)/python scripts/measure.py $(TOYS)

.PHONY: figures
figures: $(VENV)/.stamp-test $(VENV)/.stamp-built  ## Draw docs/figures from docs/measurements, and fill in the numbers of the docs
	$(BIN)/python scripts/figures.py
	$(BIN)/python scripts/fill_numbers.py

.PHONY: experiments
experiments: $(VENV)/.stamp-test $(VENV)/.stamp-built  ## Run experiments/ and make reports/, charts/ and the brief anew (EXPERIMENTS=FILE for one)
	@set -e; for file in $(EXPERIMENTS); do \
		echo "kvlab: $$file"; \
		$(BIN)/python -m kvlab bench --config $$file; \
	done
	$(BIN)/python scripts/brief.py

.PHONY: strategies
strategies: $(VENV)/.stamp-test $(VENV)/.stamp-built  ## Compare strategies of caching, from none to machines that share: reports/, charts/ (STRATEGIES_ARGS="--quick")
	$(BIN)/python -m kvlab bench strategies --config experiments/strategies.toml $(STRATEGIES_ARGS)
	$(BIN)/python scripts/fill_numbers.py

.PHONY: workloads
workloads: $(VENV)/.stamp-built  ## Make workloads/ anew from its headers, after a change of a generator
	$(BIN)/python scripts/make_workloads.py

.PHONY: torture
torture:  ## Kill a process that works on a store, 1,000 times, and check every block (TORTURE_ARGS="--cycles 100 --seed 2")
	cargo run --release --locked -p kvlab-core --example torture -- $(TORTURE_ARGS)

# No sanitizer: the parsers have no unsafe code, and so a stable compiler does. Found inputs are kept apart from the seeds.
.PHONY: fuzz
fuzz:  ## Feed the parsers of files with changed bytes (FUZZ_SECONDS=60 each; needs cargo-fuzz)
	@cargo fuzz --version >/dev/null 2>&1 || { echo "kvlab: make fuzz needs cargo-fuzz: cargo install cargo-fuzz"; exit 1; }
	@set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p core/fuzz/found/$$target; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir core/fuzz --sanitizer none $$target \
			core/fuzz/found/$$target core/fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -print_final_stats=1; \
	done

.PHONY: bench-peers
bench-peers: $(VENV)/.stamp-test $(VENV)/.stamp-built $(PEERS_VENV)/.stamp  ## Compare with other stores, side by side (PEERS_ARGS="--rounds 7")
	PYTHONPATH=benches $(PEERS_VENV)/bin/python -m peers $(PEERS_ARGS)

.PHONY: bench-peers-remote
bench-peers-remote: $(VENV)/.stamp-test $(VENV)/.stamp-built $(PEERS_VENV)/.stamp  ## Compare the remote tier with others, on servers of its own (PEERS_ARGS="--rounds 9")
	PYTHONPATH=benches $(PEERS_VENV)/bin/python -m peers.remote $(PEERS_ARGS)

.PHONY: lint
lint: $(VENV)/.stamp-test $(VENV)/.stamp-lint $(VENV)/.stamp-built docs  ## Check formatting, lints, types, stubs and documentation
	cargo fmt --all --check
	cargo fmt --manifest-path benches/peers/rust/Cargo.toml --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy --strict python/kvlab toys examples scripts tests benches/python benches/peers quick_start.py
	$(BIN)/python -m mypy.stubtest kvlab._core --allowlist tests/stubtest-allowlist.txt

.PHONY: fmt
fmt: $(VENV)/.stamp-lint  ## Format Rust and Python
	cargo fmt --all
	cargo fmt --manifest-path benches/peers/rust/Cargo.toml
	$(BIN)/python -m ruff check --fix-only --quiet .
	$(BIN)/python -m ruff format .

.PHONY: docs
docs: $(VENV)/.stamp-venv  ## Check the links of the Markdown files
	$(BIN)/python scripts/check_links.py

.PHONY: develop
develop: $(VENV)/.stamp-built  ## Build the extension into .venv, release profile

.PHONY: wheel
wheel: $(VENV)/.stamp-wheel  ## Build the abi3 wheel and the sdist into dist/

.PHONY: clean
clean:  ## Remove what was built; .venv, the model and stores stay
	cargo clean
	rm -rf dist demo-out lab-out peers-out .mypy_cache .ruff_cache .pytest_cache .hypothesis $(VENV)/.stamp-built $(VENV)/.stamp-wheel
	rm -f python/kvlab/_core*.so
	find python toys tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean  ## Remove .venv too
	rm -rf $(VENV) $(PEERS_VENV)

$(VENV)/.stamp-venv: scripts/make_venv.sh
	@[ -x $(BIN)/python ] || PYTHON="$(PYTHON)" sh scripts/make_venv.sh $(VENV) $(VENV_FLAGS)
	@$(BIN)/python scripts/requirements.py --build > $(VENV)/.requirements-build.txt
	$(PIP) install --quiet -r $(VENV)/.requirements-build.txt
	@touch $@

# torch comes first and by itself: what it is, how large, and how to have a smaller one is said before it is fetched.
$(VENV)/.stamp-torch: scripts/requirements.py $(VENV)/.stamp-venv
	@set -e; if [ -n "$(TORCH_SPEC)" ]; then \
		echo "kvlab: installing torch as TORCH_SPEC says: $(TORCH_SPEC)"; \
		$(PIP) install $(TORCH_SPEC); \
	elif $(BIN)/python -c "import torch" 2>/dev/null; then \
		echo "kvlab: torch is here already"; \
	else \
		echo "kvlab: the default torch will be downloaded: on Linux x86-64 about 2.5 GB with its CUDA libraries (5.5 GB installed)."; \
		echo "kvlab: a CPU-only torch is about 0.2 GB: TORCH_SPEC=\"torch --index-url URL-OF-A-CPU-ONLY-INDEX\" (pytorch.org names it),"; \
		echo "kvlab: or SYSTEM_SITE_PACKAGES=1 takes a torch that PYTHON has. Remove $(VENV) to choose again."; \
		$(PIP) install "$$($(BIN)/python scripts/requirements.py hf | grep '^torch')"; \
	fi
	@touch $@

$(VENV)/.stamp-demo: pyproject.toml scripts/requirements.py $(VENV)/.stamp-torch
	@$(BIN)/python scripts/requirements.py hf plot > $(VENV)/.requirements-demo.txt
	@echo "kvlab: besides torch, up to 0.2 GB of Python packages will be downloaded"
	$(PIP) install --quiet -r $(VENV)/.requirements-demo.txt
	@touch $@

$(VENV)/.stamp-plot: pyproject.toml scripts/requirements.py $(VENV)/.stamp-venv
	@$(BIN)/python scripts/requirements.py plot > $(VENV)/.requirements-plot.txt
	$(PIP) install --quiet -r $(VENV)/.requirements-plot.txt
	@touch $@

$(VENV)/.stamp-test: pyproject.toml scripts/requirements.py $(VENV)/.stamp-torch
	@$(BIN)/python scripts/requirements.py test > $(VENV)/.requirements-test.txt
	@echo "kvlab: besides torch, up to 0.2 GB of Python packages will be downloaded"
	$(PIP) install --quiet -r $(VENV)/.requirements-test.txt
	@touch $@

$(VENV)/.stamp-lint: pyproject.toml scripts/requirements.py $(VENV)/.stamp-venv
	@$(BIN)/python scripts/requirements.py lint > $(VENV)/.requirements-lint.txt
	$(PIP) install --quiet -r $(VENV)/.requirements-lint.txt
	@touch $@

$(PEERS_VENV)/.stamp: benches/peers/install.sh benches/peers/requirements.txt $(VENV)/.stamp-test \
		$(shell find benches/peers/rust -name '*.rs' -o -name 'Cargo.*')
	sh benches/peers/install.sh $(PEERS_VENV) $(BIN)/python
	@touch $@

$(VENV)/.stamp-built: $(RUST_SOURCES) $(VENV)/.stamp-venv
	VIRTUAL_ENV=$(abspath $(VENV)) PIP_QUIET=1 $(BIN)/python -m maturin develop --release --locked
	@touch $@

$(VENV)/.stamp-wheel: $(RUST_SOURCES) $(VENV)/.stamp-venv README.md LICENSE NOTICE \
		$(shell find python/kvlab -type f ! -name '*.so' ! -name '*.pyc')
	rm -rf dist
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/python -m maturin build --release --locked --out dist
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/python -m maturin sdist --out dist
	@touch $@
