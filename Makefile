# The two commands: `make run` and `make test`. Each does its own set-up on a fresh Debian 12.
.PHONY: run stop test test-v2 chaos build bench clean

run:
	@hack/run.sh

stop:
	@hack/run.sh stop

test:
	@hack/test.sh

# The runtime on a kernel with cgroup v2 alone, in a virtual machine.
test-v2:
	@hack/vm-test.sh

# kill -9 of server, shims, imports, builds and resets, 200 times; SKIFF_CHAOS_SEED=N repeats a run.
chaos:
	@hack/setup.sh curl nftables util-linux procps
	cargo build -p skiff
	KUBECTL=$$(hack/kubectl.sh) SKIFF_BIN=$(CURDIR)/target/x86_64-unknown-linux-gnu/debug/skiff \
	SKIFF_CHAOS_CYCLES=$${SKIFF_CHAOS_CYCLES:-200} cargo test -p skiff-e2e --test all -- kill_9_of_any a_reset_that

build:
	@hack/setup.sh
	cargo build --release -p skiff

# Figures for the promises of the README: start, memory, pods, throughput, size.
bench:
	@hack/setup.sh
	cargo build --release -p skiff
	cargo run -q --release -p skiff-e2e --bin promises

clean:
	cargo clean
