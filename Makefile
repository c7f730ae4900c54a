# The two commands: `make run` and `make test`. Each does its own set-up on a fresh Debian 12.
.PHONY: run stop test build bench clean

run:
	@hack/run.sh

stop:
	@hack/run.sh stop

test:
	@hack/test.sh

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
