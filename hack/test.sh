#!/bin/bash
# make test: everything, from nothing: unit tests, the seams' conformance suites, end to end with a real kubectl.
set -euo pipefail
cd "$(dirname "$0")/.."
hack/setup.sh curl nftables conntrack util-linux bsdutils procps e2fsprogs
KUBECTL=$(hack/kubectl.sh)
export KUBECTL
echo "kubectl: $KUBECTL"
[ "$(id -u)" = 0 ] || echo "skipped: whatever needs containers, namespaces or mounts: this is not root"
# Tests of one crate share a process, and some hold hundreds of connections open.
ulimit -S -n 16384 2>/dev/null || true
# One build for everything, the binary included (its package has an integration test).
cargo test --workspace --no-run
export SKIFF_BIN="$PWD/target/x86_64-unknown-linux-gnu/debug/skiff"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --workspace --no-fail-fast -- "$@" 2>&1 | tee "$log" || status=$?
# One line that counts all of it.
awk '/^test result:/ { p += $4; f += $6; i += $8 } /^[0-9]+ passed, [0-9]+ failed/ { p += $1; f += $3; i += $5 }
    /^error: could not compile/ { f += 1 }
    END { printf "%d passed, %d failed%s\n", p, f, (i ? ", " i " skipped" : "") }' "$log"
exit "$status"
