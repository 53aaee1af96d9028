# Each target sets up .venv by itself: python3 (3.11 or newer) with its venv module is all it asks for.
# Another interpreter: make demo PYTHON=/path/to/python3.12

# ARGS= is passed on: to the demo, to pytest, to the benchmark.
campaigns := kill crash faults cuts markers chaos fuzz soak latency clocksteps netns cutoff systemd
.PHONY: demo test check bench bench-clock reference campaigns $(campaigns) lock clean runtime dev peers

demo: runtime
	@.venv/bin/python -m topside_daemon demo $(ARGS)

# Four at a time, for most of them wait (ARGS=-n0: one by one); handed out singly, they keep their order.
test: dev
	@.venv/bin/python -m pytest -n 3 --dist load --maxschedchunk 1 $(ARGS)

check: dev
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo

# Against peers, where "make peers" has installed them.
bench: dev
	@.venv/bin/python -m tests.bench $(ARGS)

bench-clock: dev
	@.venv/bin/python -m tests.bench.clock $(ARGS)

reference: dev
	@PYTHONPATH=. .venv/bin/python deploy/reference.py

# Long trials of what is promised; netns, systemd and parts of others need root, crash and faults need strace,
# clocksteps needs libfaketime.
$(campaigns): dev
	@.venv/bin/python -m tests.campaigns.$@ $(ARGS)

campaigns:
	@for one in $(campaigns); do $(MAKE) --no-print-directory $$one || exit; done

# $(error) and not a failing recipe: what is missing is one line on the terminal, not two.
runtime dev peers:
	$(eval missing := $(shell PYTHON='$(PYTHON)' $(SHELL) requirements/install.sh missing 2>&1))
	$(if $(missing),$(error $(missing)))
	@PYTHON='$(PYTHON)' $(SHELL) requirements/install.sh $@
	@.venv/bin/python -m compileall -q common pi_daemon topside_daemon
	@.venv/bin/python -m topside_daemon.fusion.kernel.build || true

# Newest versions allowed by pyproject.toml, with the hashes of every platform's files.
compile := uv pip compile pyproject.toml --quiet --no-config --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
lock:
	$(if $(shell command -v uv),,$(error uv is not installed: "pipx install uv" cures it))
	@$(compile) -o requirements/pi.txt
	@$(compile) --extra topside --constraint requirements/pi.txt -o requirements/runtime.txt
	@$(compile) --extra dev --constraint requirements/runtime.txt -o requirements/dev.txt
	@$(compile) --extra dev --extra peers --constraint requirements/dev.txt -o requirements/peers.txt

clean:
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	@rm -f topside_daemon/fusion/kernel/kernel.so topside_daemon/fusion/kernel/kernel.sha256
