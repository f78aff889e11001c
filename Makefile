# One target for each task: `make help` lists them. They need only Debian or Ubuntu with Python 3.11 or 3.12.

ifndef PYTHON
PYTHON := $(or $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$python && break; done),python3)
endif
CHECKPOINT ?= build/demo/checkpoint
REPOSITORY ?= model_repository

# The variables that a target takes. `make help` shows them, and others are refused
build_TAKES := CHECKPOINT PROCESSOR CONFIG REPOSITORY ADAPTERS
serve_TAKES := $(build_TAKES) HTTP_PORT GRPC_PORT METRICS_PORT HEALTH_PORT OPTIONS
finetune_TAKES := CHECKPOINT PROCESSOR DATA OUTPUT OPTIONS
bench_TAKES := WHAT DEVICE STRATEGY ROUNDS
loadtest_TAKES := IMAGES_PER_DAY PEAK_FACTOR HOST CA_FILE SHAPE USERS DURATION RATE WORKERS SLO_P95_MS SLO_ERROR_RATE SLO_MIN_RPS \
	MIX NAME $(build_TAKES)
tune_TAKES := SLO_P95_MS BUDGET MIX NAME $(build_TAKES)
audit_TAKES := AUDIT
# Every target takes these, and hands them on to pip, to the hub and to our own programs
ALL_TAKE := PYTHON BIN PIP_% HF_% BLIPSTREAM_%

# Quote a value as one word for the shell, whatever it contains
quote = '$(subst ','\'',$1)'
# The option $2 with the value of the variable $1, if it has one
option = $(if $($1),--$2 $(call quote,$($1)))

VERBS := setup help demo serve build finetune bench loadtest tune test test-full lint format configs docs lock wheels pin-images audit sbom clean
# What of the words $2 is spelt almost as $1
nearest = $(shell $(PYTHON) -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1))' \
	$(call quote,$1) $2)

NO_GOAL := $(firstword $(filter-out $(VERBS) .venv/%,$(MAKECMDGOALS)))
ifneq ($(NO_GOAL),)
NEAREST := $(call nearest,$(NO_GOAL),$(VERBS))
$(error no target $(NO_GOAL): $(if $(NEAREST),did you mean $(NEAREST)?,see make help))
endif

GOALS := $(or $(MAKECMDGOALS),setup)
TAKEN := $(ALL_TAKE) $(foreach goal,$(GOALS),$($(goal)_TAKES))
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
TAKERS := $(patsubst %_TAKES,%,$(filter %_TAKES,$(.VARIABLES)))
UNKNOWN := $(firstword $(filter-out $(TAKEN) SHELL MAKEFLAGS,$(GIVEN)))
ifneq ($(UNKNOWN),)
NEAREST := $(call nearest,$(shell printf %s $(call quote,$(UNKNOWN)) | tr a-z A-Z),$(TAKEN))
$(error $(if $(NEAREST),no variable $(UNKNOWN): did you mean $(NEAREST)?,$(GOALS) takes no $(UNKNOWN): see make help))
endif
# Said before anything is installed
EMPTY := $(firstword $(foreach name,$(filter-out OPTIONS AUDIT PIP_% HF_% BLIPSTREAM_%,$(GIVEN)),\
	$(if $(strip $($(name))),,$(name))))
ifneq ($(EMPTY),)
$(error $(EMPTY) is empty: give it a value, or leave it out)
endif

BIN := .venv/bin
READY := .venv/ready
LOCKS := requirements.lock requirements-server.lock requirements-dev.lock
INSTALL = pip install --quiet --no-compile --no-deps --require-hashes --only-binary :all:
# The same, saying all the time how far it is
INSTALL_LOUD = $(PYTHON) deploy/install_packages.py $(BIN)/$(INSTALL:--quiet=)
SOURCES := blipstream build client deploy examples loadtest model_repository tests
# The program, which then names commands as make's
BLIPSTREAM := BLIPSTREAM_CALLED_AS=make $(BIN)/blipstream
# ADAPTERS="fr=FOLDER ja=FOLDER"
ADAPTED = $(foreach adapter,$(ADAPTERS),--adapter $(call quote,$(adapter)))
BUILD = $(BLIPSTREAM) build --checkpoint $(call quote,$(CHECKPOINT)) --repository $(call quote,$(REPOSITORY)) \
	$(call option,CONFIG,config) $(call option,PROCESSOR,processor) $(ADAPTED)
SERVED = --repository $(call quote,$(REPOSITORY)) $(call option,CONFIG,config)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: $(VERBS)

setup: $(READY)  ## install the locked packages, which every other target does first
	@echo "the packages are installed in .venv; next: make demo"

help:  ## list the targets, and the variables that each takes
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1 /p' $(firstword $(MAKEFILE_LIST)) | LC_ALL=C sort | \
		while read -r verb text; do \
			printf '  %-11s %s\n' "$$verb" "$$text"; \
			case $$verb in \
				$(foreach verb,$(TAKERS),($(verb)) echo $($(verb)_TAKES) | fold -s -w 64 | sed 's/^/              /';;) \
			esac; \
		done
	@echo "such as: make serve CHECKPOINT=Salesforce/blip-image-captioning-base"
	@echo "Without variables, the demo checkpoint is built and served, on the CPU."
	@echo "Without make, the same is .venv/bin/blipstream; its --help says more."

# What to say when a step of the installation fails; its own words stand above
failed = || { echo "Error: $1" >&2; exit 1; }

$(READY): $(LOCKS) requirements-cpu.lock requirements-cuda.lock pyproject.toml client/pyproject.toml install-system-packages.sh
	@PYTHON=$(PYTHON) ./install-system-packages.sh
	@echo "installing into .venv, which takes a minute, or several where downloads are slow:"
	@echo "  Triton, OpenVINO and all else but PyTorch"
	@$(PYTHON) -m venv .venv $(call failed,$(PYTHON) cannot make the environment .venv)
	@$(INSTALL_LOUD) $(LOCKS:%=--requirement %) $(call failed,pip cannot install what $(LOCKS) name)
	@echo "  PyTorch"
	@$(INSTALL_LOUD) --requirement requirements-cpu.lock 2>/dev/null \
		|| { echo "  pip is offered no PyTorch for CPUs: installing PyPI's for CUDA, several GB"; \
			$(INSTALL_LOUD) --requirement requirements-cuda.lock; } $(call failed,pip cannot install PyTorch)
	@echo "  Blipstream"
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable client --editable . \
		$(call failed,pip cannot install Blipstream itself)
	@touch $@

build: $(READY)  ## make a model repository from CHECKPOINT
	@$(BUILD)

demo: $(READY)  ## caption, explain and search the samples through Triton
	@$(BLIPSTREAM) demo --repository .demo_cache

serve: $(READY)  ## build CHECKPOINT and serve it until Ctrl-C
	@exec env $(BLIPSTREAM) serve $(SERVED) $(call option,PROCESSOR,processor) $(ADAPTED) $(call option,HTTP_PORT,http-port) \
		$(call option,GRPC_PORT,grpc-port) $(call option,METRICS_PORT,metrics-port) \
		$(call option,HEALTH_PORT,health-port) $(OPTIONS) $(call quote,$(CHECKPOINT))

finetune: $(READY)  ## teach CHECKPOINT from the images and captions in DATA, into OUTPUT
	@$(BLIPSTREAM) finetune --checkpoint $(call quote,$(CHECKPOINT)) $(call option,PROCESSOR,processor) \
		$(call option,DATA,data) $(call option,OUTPUT,output) $(OPTIONS)

bench: $(READY)  ## measure transformers, the engine and Triton side by side
	@$(BLIPSTREAM) bench $(call option,WHAT,what) $(call option,DEVICE,device) $(call option,STRATEGY,strategy) \
		$(call option,ROUNDS,rounds) --cache loadtest/.bench_cache --output loadtest/results

loadtest: $(READY)  ## load HOST or a server of its own; say how many machines you need
	@$(if $(HOST),,$(BUILD) --print-path >/dev/null)
	@$(BLIPSTREAM) loadtest --output loadtest/results $(SERVED) $(call option,IMAGES_PER_DAY,images-per-day) \
		$(call option,PEAK_FACTOR,peak-factor) $(call option,HOST,host) $(call option,CA_FILE,ca-file) \
		$(call option,SHAPE,shape) $(call option,USERS,users) \
		$(call option,DURATION,duration) $(call option,RATE,rate) $(call option,WORKERS,workers) $(call option,MIX,mix) \
		$(call option,NAME,name) $(call option,SLO_P95_MS,p95-ms) $(call option,SLO_ERROR_RATE,error-rate) \
		$(call option,SLO_MIN_RPS,min-rps)

tune: $(READY)  ## find the batching settings with most requests a second in time
	@$(BUILD) --print-path >/dev/null
	@$(BLIPSTREAM) tune --output loadtest/results $(SERVED) $(call option,SLO_P95_MS,p95-ms) $(call option,BUDGET,budget) \
		$(call option,MIX,mix) $(call option,NAME,name)

test: $(READY)  ## run the tests, except those of test-full
	@./tests/install-tools.sh
	@OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses=2 --dist=loadfile  # most tests wait for servers

test-full: $(READY)  ## test real sizes and faults: half an hour, 12 GB of memory
	@$(BIN)/pytest -m full

lint: $(READY)  ## check style and types
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/python build/generated_files.py --check

format: $(READY)  ## mend what can be mended of the style
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

configs: $(READY)  ## write the files that follow from the decoding options
	@$(BIN)/python build/generated_files.py

lock: $(READY)  ## resolve all lock files anew
	@$(BIN)/python deploy/lock.py
	@echo "next: make setup installs what they name; see what has changed by git diff --stat"

wheels: $(READY)  ## build the wheels of the server and of the client into dist/
	@$(BIN)/hatchling build --target wheel --directory $(CURDIR)/dist
	@cd client && $(abspath $(BIN))/hatchling build --target wheel --directory $(CURDIR)/dist
	@echo "the wheels are in dist; next: install them as docs/quickstart.md says, without a checkout"

pin-images: $(READY)  ## pin the container images to what their tags name today
	@$(BIN)/python deploy/pin_images.py

docs: $(READY)  ## build the documents as a site; a dead link is an error
	@$(BIN)/mkdocs build --quiet --strict
	@echo "the first page is site/index.html"

AUDIT_BIN := .venv/audit/bin
AUDIT_READY := .venv/audit/ready

$(AUDIT_READY): $(READY) deploy/audit.lock
	@echo "installing the scanners into .venv/audit"
	@$(PYTHON) -m venv .venv/audit
	@$(AUDIT_BIN)/$(INSTALL) --requirement deploy/audit.lock
	@touch $@

audit: $(AUDIT_READY)  ## look up known vulnerabilities of the locked packages
	@$(BIN)/python deploy/audit.py $(AUDIT) $(LOCKS) requirements-cuda.lock $(wildcard deploy/*.lock)

SBOM = $(AUDIT_BIN)/cyclonedx-py requirements --validate --output-reproducible --pyproject pyproject.toml

# Scanners know torch's version without "+cpu"
sbom: $(AUDIT_READY)  ## list for scanners what is installed, here and in the images
	@cat requirements.lock requirements-cpu.lock requirements-server.lock | sed 's/+cpu//' | $(SBOM) --output-file sbom.json -
	@$(SBOM) --output-file sbom-gpu.json deploy/requirements.lock
	@echo "wrote sbom.json and sbom-gpu.json"

clean:  ## remove what the other targets made
	@rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis demo.png demo-heatmaps.png demo-search.png site
	@rm -rf .demo_cache loadtest/.bench_cache loadtest/.perf_analyzer_cache
	@find model_repository -mindepth 3 -maxdepth 3 ! -name model.py ! -name .gitkeep -exec rm -rf {} +
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
