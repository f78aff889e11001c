# One target for each task: `make help` lists them. They need only Debian or Ubuntu with Python 3.11 or 3.12.

ifndef PYTHON
PYTHON := $(or $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$python && break; done),python3)
endif
CHECKPOINT ?= build/demo/checkpoint
CONFIG ?= cpu
DEVICE ?= cpu
REPOSITORY ?= model_repository
HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002

# Quote a value as one word for the shell, whatever it contains
quote = '$(subst ','\'',$1)'

BIN := .venv/bin
READY := .venv/ready
LOCKS := requirements.lock requirements-server.lock requirements-dev.lock
INSTALL = pip install --quiet --no-compile --no-deps --require-hashes --only-binary :all:
SOURCES := blipstream build client deploy examples loadtest model_repository tests

.PHONY: setup help demo serve build bench loadtest tune test test-full lint format configs docs lock wheels pin-images audit sbom clean

setup: $(READY)  ## install the locked packages into .venv, which every other target does first

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | LC_ALL=C sort | awk -F '\t' '{ printf "  %-12s %s\n", $$1, $$2 }'

$(READY): $(LOCKS) requirements-cpu.lock requirements-cuda.lock pyproject.toml client/pyproject.toml install-system-packages.sh
	PYTHON=$(PYTHON) ./install-system-packages.sh
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) $(LOCKS:%=--requirement %)
	$(BIN)/$(INSTALL) --requirement requirements-cpu.lock 2>/dev/null \
		|| { echo "pip is offered no PyTorch for CPUs, so PyPI's for CUDA is installed, which is several GB"; \
			$(BIN)/$(INSTALL) --requirement requirements-cuda.lock; }
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable client --editable .
	touch $@

build: $(READY)  ## make a model repository from CHECKPOINT
	$(BIN)/blipstream build --checkpoint $(call quote,$(CHECKPOINT)) \
		--config $(call quote,$(CONFIG)) --repository $(call quote,$(REPOSITORY)) \
		$(if $(PROCESSOR),--processor $(call quote,$(PROCESSOR)))

demo: $(READY)  ## caption the sample images through a real Triton server, and show them
	$(BIN)/blipstream build --repository model_repository
	$(BIN)/python build/demo/demo.py

serve: build  ## build CHECKPOINT and serve it until Ctrl-C
	@exec $(BIN)/blipstream serve --repository $(call quote,$(REPOSITORY)) --config $(call quote,$(CONFIG)) \
		--http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT) $(OPTIONS)

bench: $(READY)  ## measure transformers, the engine and Triton side by side
	$(BIN)/blipstream bench --device $(DEVICE) --cache loadtest/.bench_cache --output loadtest/results

loadtest: $(if $(HOST),$(READY),build)  ## load HOST, or a server of its own; IMAGES_PER_DAY says how many machines you need
	$(BIN)/blipstream loadtest --output loadtest/results --repository $(call quote,$(REPOSITORY)) --config $(call quote,$(CONFIG)) \
		$(if $(HOST),--host $(call quote,$(HOST))) $(if $(SHAPE),--shape $(SHAPE)) $(if $(USERS),--users $(USERS)) \
		$(if $(DURATION),--duration $(DURATION)) $(if $(RATE),--rate $(RATE)) $(if $(WORKERS),--workers $(WORKERS)) \
		$(if $(MIX),--mix $(call quote,$(MIX))) $(if $(NAME),--name $(call quote,$(NAME))) \
		$(if $(SLO_P95_MS),--p95-ms $(SLO_P95_MS)) $(if $(SLO_ERROR_RATE),--error-rate $(SLO_ERROR_RATE)) \
		$(if $(SLO_MIN_RPS),--min-rps $(SLO_MIN_RPS)) \
		$(if $(IMAGES_PER_DAY),--images-per-day $(call quote,$(IMAGES_PER_DAY))) \
		$(if $(PEAK_FACTOR),--peak-factor $(PEAK_FACTOR))

tune: build  ## find the batching settings that answer most requests a second within SLO_P95_MS
	$(BIN)/blipstream tune --output loadtest/results --repository $(call quote,$(REPOSITORY)) --config $(call quote,$(CONFIG)) \
		$(if $(SLO_P95_MS),--p95-ms $(SLO_P95_MS)) $(if $(BUDGET),--budget $(BUDGET)) $(if $(MIX),--mix $(call quote,$(MIX))) \
		$(if $(NAME),--name $(call quote,$(NAME)))

test: $(READY)  ## run the tests, except those of test-full
	./tests/install-tools.sh
	OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses=2 --dist=loadfile  # most tests wait for servers

test-full: $(READY)  ## test real sizes, faults and a hundred thousand images; needs 12 GB of memory and half an hour
	$(BIN)/pytest -m full

lint: $(READY)  ## check style and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python build/generated_files.py --check

format: $(READY)  ## mend what can be mended of the style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

configs: $(READY)  ## write the models' configs and the other files that follow from the decoding options
	$(BIN)/python build/generated_files.py

lock: $(READY)  ## resolve all lock files anew
	$(BIN)/python deploy/lock.py

wheels: $(READY)  ## build the wheels of the server and of the client into dist/
	$(BIN)/hatchling build --target wheel --directory $(CURDIR)/dist
	cd client && $(abspath $(BIN))/hatchling build --target wheel --directory $(CURDIR)/dist

pin-images: $(READY)  ## pin the container images of all files to what their tags name today
	$(BIN)/python deploy/pin_images.py

docs: $(READY)  ## build these documents as a site in site/; a link that leads nowhere is an error
	$(BIN)/mkdocs build --quiet --strict

AUDIT_BIN := .venv/audit/bin
AUDIT_READY := .venv/audit/ready

$(AUDIT_READY): $(READY) deploy/audit.lock
	$(PYTHON) -m venv .venv/audit
	$(AUDIT_BIN)/$(INSTALL) --requirement deploy/audit.lock
	touch $@

audit: $(AUDIT_READY)  ## look up known vulnerabilities of the locked packages; fails with "NOT RUN" if that was impossible
	$(BIN)/python deploy/audit.py $(AUDIT) $(LOCKS) requirements-cuda.lock $(wildcard deploy/*.lock)

SBOM = $(AUDIT_BIN)/cyclonedx-py requirements --validate --output-reproducible --pyproject pyproject.toml

# Scanners know torch's version without "+cpu"
sbom: $(AUDIT_READY)  ## list for scanners what is installed here, in the CPU image and in the GPU image
	cat requirements.lock requirements-cpu.lock requirements-server.lock | sed 's/+cpu//' | $(SBOM) --output-file sbom.json -
	$(SBOM) --output-file sbom-gpu.json deploy/requirements.lock

clean:  ## remove what the other targets made
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis demo.png
	rm -rf loadtest/.bench_cache loadtest/.perf_analyzer_cache
	find model_repository -mindepth 3 -maxdepth 3 ! -name model.py ! -name .gitkeep -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf site
