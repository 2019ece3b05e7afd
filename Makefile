# MuSAE: every command a person needs. `make help` lists them.

PYTHON  ?= python3.11
TORCH   := 2.13.0
VENV    := .venv
BIN     := $(VENV)/bin
PY      := $(BIN)/python
READY   := $(VENV)/.ready

PROFILE ?= full
MODEL   ?= nano
ONLY    ?=
DATA    ?=
ARGS    ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env book test test-fast lab nano saes ears steering latents structure scoreboard peers lint lock clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## make .venv: Python 3.11, torch, then requirements.lock

# Each step does nothing when it is already done, so an interrupted run goes on where it stopped.
$(READY): requirements.lock pyproject.toml
	@py=$(PYTHON); command -v "$$py" >/dev/null 2>&1 || py=python3; \
	"$$py" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "MuSAE needs Python 3.11, and neither $(PYTHON) nor python3 is that." \
	       "Install it (Debian: apt install python3.11 python3.11-venv; macOS: brew install python@3.11)" \
	       "or name it: make env PYTHON=/path/to/python3.11"; exit 1; }; \
	$(PY) -m pip --version >/dev/null 2>&1 || "$$py" -m venv --clear $(VENV) || { \
	  echo "$$py could not make an environment in $(VENV) (on Debian: apt install python3.11-venv)."; exit 1; }
	@echo "Making the environment in $(VENV): the first time takes minutes and several GB."
	$(PY) -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

book: $(READY) ## run the notebooks and build the site: PROFILE=smoke|full MODEL=nano|… ONLY=03 DATA=folder
	@$(PY) -m musae_utils.book --profile "$(PROFILE)" --model "$(MODEL)" \
	  $(if $(ONLY),--only "$(ONLY)") $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(READY) ## all tests, with every notebook in the smoke profile, the book and the browser
	@$(PY) -m pytest tests $(ARGS)

test-fast: $(READY) ## unit tests alone
	@$(PY) -m pytest tests -m "not slow" $(ARGS)

lab: $(READY) ## JupyterLab at the first chapter
	@$(BIN)/jupyter lab "$$(ls notebooks/[0-9]*.ipynb | head -n 1)"

nano: $(READY) ## train the nano models again: codec, MusicGen, VAE, tokenizer, diffusion (hours; resumes)
	@$(PY) -m musae_utils.models.train_codec $(ARGS)
	@$(PY) -m musae_utils.models.train_lm $(ARGS)
	@$(PY) -m musae_utils.latents.train_vae $(ARGS)
	@$(PY) -m musae_utils.latents.train_tokenizer $(ARGS)
	@$(PY) -m musae_utils.latents.train_flow $(ARGS)

saes: $(READY) ## train the nano model's sparse autoencoders again (ten minutes; resumes)
	@$(PY) -m musae_utils.sae.shipped $(ARGS)

ears: $(READY) ## train the nano tagger and the nano CLAP again (under an hour; resumes)
	@$(PY) -m musae_utils.labels.train_ears $(ARGS)

steering: $(READY) ## steer with chosen features beside every rival, for chapter 11 (an hour; resumes)
	@$(PY) -m musae_utils.steering.experiment $(ARGS)

latents: $(READY) ## probe, manipulate and watch the audio latents, for chapters 13 and 14 (half an hour; resumes)
	@$(PY) -m musae_utils.latents.spaces $(ARGS)
	@$(PY) -m musae_utils.latents.manipulate $(ARGS)
	@$(PY) -m musae_utils.latents.birth $(ARGS)

structure: $(READY) ## returns, horizons, cuts and gates, chapters 15 to 17: MODEL= DATA= for your own (two hours; resumes)
	@$(PY) -m musae_utils.structure.returns
	@$(PY) -m musae_utils.structure.gates --model "$(MODEL)" $(if $(DATA),--data "$(DATA)") $(ARGS)

scoreboard: $(READY) ## recompute every headline figure, quoted in README.md: ARGS="--only nano.codec"
	@$(PY) benchmarks/scoreboard.py $(ARGS)
	@$(PY) -m musae_utils.book --quote

peers: .venv-peers/.ready ## SAE training against sae-lens, dictionary_learning, sparsify, Overcomplete
	@$(PY) -m musae_utils.activations runs/sae_peers/train --clips 400
	@$(PY) -m musae_utils.activations runs/sae_peers/held_out --clips 60 --split test --seed 50000
	@PYTHONPATH=. .venv-peers/bin/python benchmarks/sae_peers.py $(ARGS)

.venv-peers/.ready: benchmarks/peers/requirements.lock $(READY)
	$(PY) -m venv --clear .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check torch==$(TORCH)
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers/requirements.lock
	@touch $@

lint: $(READY) ## ruff, and no outputs in committed notebooks
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@set -- notebooks/*.ipynb; [ ! -e "$$1" ] || $(BIN)/nbstripout --verify \
	  --extra-keys "metadata.papermill cell.metadata.papermill" "$$@"

lock: ## compile requirements.in into requirements.lock, for all platforms; the peers' likewise
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	$(PYTHON) -m venv "$$tmp/uv" && "$$tmp/uv/bin/pip" install --quiet uv && \
	for folder in . benchmarks/peers; do \
	  (cd $$folder && "$$tmp/uv/bin/uv" pip compile --quiet --universal --python-version 3.11 \
	    --override overrides.txt --no-emit-package torch --no-header --no-emit-index-url \
	    --no-emit-find-links requirements.in -o "$$tmp/lock") && \
	  awk "/sys_platform == 'never'/ {skip = 1; next} /^ / && skip {next} {skip = 0; print}" \
	    "$$tmp/lock" > "$$tmp/kept" && mv "$$tmp/kept" $$folder/requirements.lock && rm "$$tmp/lock" || exit 1; \
	done

clean: ## remove what was built (_build, caches); .venv, data and runs stay
	rm -rf _build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
