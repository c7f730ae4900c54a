# The two commands: `make run` and `make test`. Each does its own set-up on a fresh Debian 12.
.PHONY: run stop test test-v2 build bench clean

run:
	@hack/run.sh

stop:
	@hack/run.sh stop

test:
	@hack/test.sh

# The runtime on a kernel with cgroup v2 alone, in a virtual machine.
test-v2:
	@hack/vm-test.sh

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
