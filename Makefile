# The commands of this repository. `make` alone lists them; AGENTS.md says how to work here.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

export CARGO ?= cargo
# Further arguments of `atoll dev` in `make run` and of the program in `make bench`.
ARGS ?=

.PHONY: help run test image verify fix bench soak

help: ## List these commands
	@echo "Atoll: a self-hosted mesh of sandboxes. Commands:"
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo "Arguments of a command: make run ARGS='--regions fra --pool 2'"

run: ## Install what is missing, build, and run a mesh of three regions in the foreground
	@.ci/deps run
	$(CARGO) build --release --package node-server
	target/release/atoll dev $(ARGS)

image: ## Build the guest image, unless it is there already
	@.ci/deps run
	$(CARGO) build --release --package node-server
	target/release/atoll image build

test: ## Run every test, with real virtual machines and whole meshes
	@.ci/deps test
	$(CARGO) build --package node-server
	target/debug/atoll image build
	@.ci/tests all

verify: ## Check without changing anything: format, lints, quick tests, documentation, arrows
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	@.ci/tests quick
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --workspace --no-deps --document-private-items

fix: ## Rewrite what can be rewritten: format, and lints that mend themselves
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

bench: ## Measure the engine on this machine, beside runc and runsc, and print the conditions
	@.ci/deps bench
	$(CARGO) build --release --package node-server --package tests-bench
	target/release/atoll image build
	target/release/bench $(ARGS)

soak: ## Wear a mesh out: 1,000 sandboxes with kills in the middle, 500 random steps against a model
	@.ci/deps run
	$(CARGO) build --release --package node-server --package tests-cluster
	target/release/atoll image build
	target/release/soak $(ARGS)
