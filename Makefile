# Everything a developer types. `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/torpor
DENY_VERSION := 0.20.2
DENY_ROOT := $(CACHE)/cargo-deny-$(DENY_VERSION)
SCHEMATHESIS_VERSION := 4.32.5
SCHEMATHESIS := $(CACHE)/schemathesis-$(SCHEMATHESIS_VERSION)/bin/schemathesis
TRAEFIK := $(CACHE)/traefik-$(shell sed -n 's|^require github.com/traefik/traefik/v3 ||p' tests/cluster/tools/traefik/go.mod)

# Wherever CARGO_TARGET_DIR or cargo's configuration puts it.
TARGET := "$$(cargo metadata --locked --no-deps --format-version=1 | sed 's|.*"target_directory":"\([^"]*\)".*|\1|')"
# What is run as it was compiled by `programs`. Cargo would compile common dependencies once more for each choice of packages.
DEBUG := $(TARGET)/debug
# A network of its own, with a loopback device and nothing else. The API server wants to see a way out, which leads back here.
ALONE := target."cfg(all())".runner=["unshare", "--net", "sh", "-c", "ip link set lo up && ip address add 192.0.2.1/32 dev lo && ip route add default dev lo && exec \"$$0\" \"$$@\""]

.PHONY: help programs demo demo-stop test e2e e2e-build bench chaos page-test api-test traefik-test image image-check lint fresh crds generate cluster-up cluster-down deps-check need-cargo need-go need-chromium need-namespaces

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

programs: need-cargo
	@cargo build --locked --workspace --bins

demo: need-go programs ## Start a local cluster and show tenants being served, put to sleep and woken
	@$(DEBUG)/torpor-demo

# Sources that do not compile at the moment are no reason to let it run.
demo-stop: need-cargo ## Stop what `make demo` left running
	@[ -x $(DEBUG)/torpor-demo ] || $(MAKE) programs
	@$(DEBUG)/torpor-demo stop

test: lint fresh ## All checks: lint, fresh generated files, then every test
	cargo test --locked --workspace

# Both packages in one command, or their common dependencies would be compiled twice, with different features.
# BENCH_PROFILE=dist measures the program as the image has it, smaller, and built for minutes longer.
BENCH_PROFILE := release
bench: need-cargo need-go ## Measure: BENCH=quick, full, or some by name, such as BENCH="full wake"; prints a table, writes target/bench
	@cargo build --quiet --profile $(BENCH_PROFILE) --locked --package torpor --package torpor-bench --bins
	@$(TARGET)/$(BENCH_PROFILE)/torpor-bench $(BENCH)

e2e: e2e-build ## Install Torpor by helm on real kubelets, with real PostgreSQL, Redis and Hummingbot; needs root on Debian
	@$(DEBUG)/torpor-e2e test --image target/image/torpor.oci.tar $(E2E)

e2e-build: image ## Build what `make e2e` runs, and start nothing
	@$(DEBUG)/torpor-e2e build

# Optimised, or the processor time of the operator's starts would be half of a run. CHAOS_PROFILE=dev takes what the tests have built.
CHAOS_PROFILE := release
chaos: need-cargo need-go ## Kill Torpor at its writes, lie to it, break what it stands on, for an hour; CHAOS="--minutes 20", CHAOS=crash
	@cargo build --quiet --locked --profile $(CHAOS_PROFILE) $(if $(filter dev,$(CHAOS_PROFILE)),--workspace,--package torpor --package torpor-faults) --bins
	@$(TARGET)/$(patsubst dev,debug,$(CHAOS_PROFILE))/torpor-chaos $(CHAOS)

page-test: need-cargo need-go need-chromium ## Show the waiting page in a real Chromium; screenshots go to target/page
	TORPOR_OUTSIDE=1 cargo test --locked --test integration -- browser

api-test: need-cargo need-go $(SCHEMATHESIS) ## Compare the gateway's answers with its OpenAPI document, by schemathesis
	TORPOR_OUTSIDE=1 TORPOR_SCHEMATHESIS=$(SCHEMATHESIS) cargo test --locked --test integration -- gateway::document

$(SCHEMATHESIS):
	@echo "installing schemathesis $(SCHEMATHESIS_VERSION) into $(CACHE)" >&2
	python3 -m venv $(CACHE)/schemathesis-$(SCHEMATHESIS_VERSION)
	$(CACHE)/schemathesis-$(SCHEMATHESIS_VERSION)/bin/pip install --quiet schemathesis==$(SCHEMATHESIS_VERSION)

traefik-test: need-cargo need-go $(TRAEFIK) ## Show one host per tenant behind a real Traefik: asleep, waiting page, dashboard
	TORPOR_OUTSIDE=1 TORPOR_TRAEFIK=$(TRAEFIK) cargo test --locked --test integration -- gateway::hosts

$(TRAEFIK):
	@echo "building Traefik into $(CACHE); once, takes minutes" >&2
	@tests/cluster/tools/traefik/build $@

image: need-go programs ## Build the container image without Docker: target/image/torpor.oci.tar and its SBOM
	@$(DEBUG)/torpor-image build

image-check: need-go need-namespaces programs ## Build the image of the commit twice, compare, inspect, and try names and TLS in it; minutes
	@$(DEBUG)/torpor-image check
	TORPOR_OUTSIDE=1 TORPOR_IMAGE=$(CURDIR)/target/image/torpor.oci.tar cargo test --locked --config '$(ALONE)' --test integration -- image

lint: need-cargo ## Formatting, clippy and missing documentation; any finding is an error
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings -D missing-docs

# The other generated files are compared by unit tests.
fresh: programs ## Fail if crds/ is not what the types in src/api say
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(DEBUG)/torpor crds --dir "$$dir"; \
	diff -ru crds "$$dir" || { echo "crds/ is stale: run 'make generate' and commit the result" >&2; exit 1; }

crds: need-cargo ## Write crds/ anew from src/api
	cargo run --quiet --locked --package torpor --bin torpor -- crds --dir crds

generate: crds ## Write every generated file anew: crds/, docs/metrics.md, golden files of the tests, copies and tables of the charts
	UPDATE_GOLDEN=1 cargo test --quiet --package torpor --lib --test golden --test charts

cluster-up: programs ## Start a local Kubernetes control plane in the background
	@$(DEBUG)/torpor-cluster up

cluster-down: need-cargo ## Stop the cluster of `make cluster-up`
	@[ -x $(DEBUG)/torpor-cluster ] || $(MAKE) programs
	@$(DEBUG)/torpor-cluster down

deps-check: need-cargo $(DENY_ROOT)/bin/cargo-deny ## Licences, banned crates and sources of the dependencies; offline after the first run
	$(DENY_ROOT)/bin/cargo-deny --offline check licenses bans sources

# Built outside of the project's target folder, which it would only fill.
$(DENY_ROOT)/bin/cargo-deny: | need-cargo
	@echo "building cargo-deny $(DENY_VERSION) into $(DENY_ROOT); once, takes minutes" >&2
	env -u CARGO_TARGET_DIR cargo install --quiet --locked --root $(DENY_ROOT) cargo-deny@$(DENY_VERSION)

# Go builds the Kubernetes programs, once; to say so after minutes of compiling Rust would be late.
need-go:
	@command -v go >/dev/null || ls -d $(or $(TORPOR_CACHE),$(XDG_CACHE_HOME),$(HOME)/.cache)/torpor/bin-* >/dev/null 2>&1 || { \
	echo "go is not installed: the local cluster is built from Go modules and needs Go 1.26 or newer, see https://go.dev/dl" >&2; exit 1; }

# Debian's and Ubuntu's package; elsewhere install chromium and chromedriver by hand.
need-chromium:
	@command -v chromedriver >/dev/null && command -v chromium >/dev/null || { \
	command -v apt-get >/dev/null || { echo "chromium and chromedriver are not installed" >&2; exit 1; }; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq; $$sudo apt-get install -y -qq --no-install-recommends chromium chromium-driver; }

need-namespaces:
	@[ "$$(id -u)" = 0 ] || { echo "the image is tried in a network and with a root folder of its own, which only root may make" >&2; exit 1; }
	@command -v ip >/dev/null && command -v unshare >/dev/null || { \
	command -v apt-get >/dev/null || { echo "ip and unshare are not installed (iproute2, util-linux)" >&2; exit 1; }; \
	apt-get update -qq; apt-get install -y -qq --no-install-recommends iproute2 util-linux; }

need-cargo:
	@command -v cargo >/dev/null || { echo "cargo is not installed: Torpor needs Rust 1.89 or newer, see https://rustup.rs" >&2; exit 1; }
