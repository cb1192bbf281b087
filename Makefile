# Targets create .venv on first use; `make clean` removes it and build/. Downloads and features stay in datasets/.
PYTHON ?= python3
# Matching versions of torch and torchvision; any newer pair works too.
TORCH ?= torch==2.13.0 torchvision==0.28.0
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
NOTEBOOK := notebooks/rnn_lstm_captioning.ipynb
# The data file of photographs for Part 5 of the notebook. none: skip that part.
PHOTOS ?= none
EXECUTE := EECS598_PHOTOS=$(PHOTOS) .venv/bin/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=3600
# A second pass, which keeps only the last state of each progress bar.
TIDY := .venv/bin/jupyter nbconvert --CoalesceStreamsPreprocessor.enabled=True
# Photographs must not be redistributed: the outputs of cells that show them are removed.
NO_PHOTOGRAPHS := --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_all_outputs_tags=pictures

.PHONY: run test lab notebook bench badge lint clean

run: .venv/ready  ## execute the notebook on the embedded data, write build/rnn_lstm_captioning.html; PHOTOS=FILE
	$(EXECUTE) --output-dir build $(NOTEBOOK)
	.venv/bin/python -m nbconvert --to eecs598.vis.page.Page build/rnn_lstm_captioning.ipynb
	@echo "open build/rnn_lstm_captioning.html"

test: .venv/ready  ## run the tests in several processes
	.venv/bin/python -m pytest -n auto --dist loadscope

lab: .venv/ready  ## open the notebook in JupyterLab
	.venv/bin/jupyter lab $(NOTEBOOK)

notebook: .venv/ready  ## execute the notebook in place, without outputs that show photographs; PHOTOS=FILE
	$(EXECUTE) --inplace $(NOTEBOOK)
	$(TIDY) $(NO_PHOTOGRAPHS) --to notebook --inplace $(NOTEBOOK)

# INSTRUCTORS ONLY: these lines are not in the student edition.
.PHONY: handout grade

handout: .venv/ready  ## write the student edition to build/handout and build/handout.zip; OPTIONS="--published"
	.venv/bin/python -m eecs598.handout build/handout $(OPTIONS)

# `make grade FILE...`: the words after grade are files to grade, not targets.
ifeq ($(firstword $(MAKECMDGOALS)),grade)
FILE ?= $(wordlist 2,$(words $(MAKECMDGOALS)),$(MAKECMDGOALS))
.PHONY: $(FILE)
$(FILE):
	@:
endif

# FILE may be a single name with spaces and brackets, as browsers make them, or several names.
grade: export FILES = $(FILE)
grade: .venv/ready  ## grade submissions; OPTIONS="--parts published --csv class.csv"
	@if [ -e "$$FILES" ]; then set -- "$$FILES"; else set -- $$FILES; fi; .venv/bin/python -m eecs598.grading "$$@" $(OPTIONS)

# END INSTRUCTORS

bench: .venv/ready  ## benchmark the hand-written code against PyTorch's
	mkdir -p build
	.venv/bin/python -m eecs598.bench --json build/bench.json --png build/bench.png

# Takes about 6 GB. Python 3.10 to 3.12 only, as torch 2.4 and numpy 1.26 support none newer.
.PHONY: oldest
oldest:  ## run the tests with the oldest versions that pyproject.toml allows; PYTHON=python3.10
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install -q $$(grep -oE '"[a-z0-9-]+>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/' | sort -u)
	build/oldest/bin/python -m pytest -n auto --dist loadscope

badge: .venv/ready  ## add an "Open in Colab" badge to README.md and the notebook; REPO=owner/name BRANCH=main
	.venv/bin/python -m eecs598.badge "$(REPO)" --branch "$(or $(BRANCH),main)"

lint: .venv/ready
	.venv/bin/ruff check .

clean:
	rm -rf .venv build

# Debian's python3 comes without venv, which is then installed.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv || (rm -rf .venv && echo "python3-venv is missing: installing it" \
		&& $(SUDO) apt-get update -q && $(SUDO) apt-get install -qy python3-venv && $(PYTHON) -m venv .venv)
	.venv/bin/python -m pip install -q $(TORCH)
	.venv/bin/python -m pip install -q -e '.[dev]'
	touch .venv/ready
