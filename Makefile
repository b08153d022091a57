# Thin on purpose: each target is one line of work, done by `cargo xtask` (crates/xtask) or the medfleet binary.
.DEFAULT_GOAL := help
.PHONY: help demo test chaos eval up fetch fmt cuda fuzz bench-peers

# Said before cargo says anything: it compiles xtask first.
first-start = [ -e "$${CARGO_TARGET_DIR:-target}/debug/medfleet" ] || echo "first start: cargo compiles up to $$(grep -c '^\[\[package' Cargo.lock) packages, which is nearly all of the wait; the next start finds them compiled and takes seconds"

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: ## on a fresh machine: build, start a fleet, submit a phantom and a real chest film, print the drafts, stop
	@$(first-start)
	@cargo xtask demo

test: ## everything that CI runs
	@cargo xtask ci

chaos: ## 500 seeds in virtual time, then 30 seeds of 2000 jobs each while everything is broken; SEEDS=, JOBS=, FIRST= and NODES=3 choose; a stopped run continues
	@cargo xtask chaos --seeds $(or $(SEEDS),30) --jobs $(or $(JOBS),2000) --first-seed $(or $(FIRST),1) --nodes $(or $(NODES),1)

eval: ## what the demo model can do, asked of a fleet about 500 phantoms that it never saw; COUNT= and SEED= choose
	@cargo xtask eval --count $(or $(COUNT),500) --seed $(or $(SEED),770077)

up: ## a local fleet that keeps running; prints its address and where its token is
	@$(first-start)
	@cargo xtask up

cuda: ## the binaries for NVIDIA GPUs, built without one; needs Python's package index
	@cargo xtask cuda

bench-peers: ## this model, llama.cpp and PyTorch in turns on this machine (installs both); OPTIONS= as `cargo xtask` says
	@cargo xtask bench-peers $(OPTIONS)

fuzz: ## break files on purpose for an hour, and look for what does not survive it
	@cargo xtask fuzz

fetch: ## the pinned tools and test data, into the cache; NAMES=nats-server brings that alone
	@cargo xtask fetch $(NAMES)

fmt: ## format the code
	@cargo fmt --all
