#!/bin/bash
# make run: a cluster with the example application, from nothing. Ctrl-C ends it and leaves nothing behind;
# DETACH=1 returns once the application answers, and `make stop` ends it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
skiff=target/x86_64-unknown-linux-gnu/release/skiff
run=${SKIFF_RUN_DIR:-$root/target/run}
data=$run/data
export KUBECONFIG=$run/kubeconfig.yaml
port=${PORT:-6443}

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
fail() { printf 'make run: %s\n' "$*" >&2; exit 1; }

stop() {
    # To the end, whatever happens: a closed terminal or pipe, a second Ctrl-C, a part that is gone already.
    trap - EXIT
    trap '' INT TERM PIPE
    set +e
    if [ -f "$run/pid" ]; then
        pid=$(cat "$run/pid")
        if [ -d "/proc/$pid" ] && [ "$(readlink "/proc/$pid/exe" || true)" = "$(readlink -f "$skiff")" ]; then
            kill -TERM "$pid" 2>/dev/null || true
            for _ in $(seq 100); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
            [ -d "/proc/$pid" ] && kill -KILL "$pid" 2>/dev/null || true
        fi
    fi
    if [ -d "$data" ] && [ -x "$skiff" ]; then "$skiff" reset --data-dir "$data"; fi
    rm -rf "$run"
}

if [ "${1:-}" = stop ]; then
    if [ -d "$run" ]; then say "stopping the cluster"; stop; say "nothing is left of it"; else echo "nothing runs"; fi
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "containers need root: run it as root"
say "1/6 what the system lacks"
hack/setup.sh
kubectl=$(hack/kubectl.sh)
say "2/6 building the release binary (the first time takes some minutes)"
cargo build --release -p skiff
if [ -d "$run" ]; then say "an earlier run is there: ending it"; stop; fi
mkdir -p "$run"

say "3/6 starting the cluster"
setsid "$skiff" server --data-dir "$data" --config /dev/null --https-listen-port "$port" \
    --write-kubeconfig "$KUBECONFIG" ${SKIFF_ARGS:-} >"$run/server.log" 2>&1 </dev/null &
pid=$!
disown "$pid"
echo "$pid" >"$run/pid"
trap 'echo; say "stopping"; stop; exit 130' INT TERM
trap stop EXIT
for _ in $(seq 300); do
    [ -d "/proc/$pid" ] || { cat "$run/server.log" >&2; fail "the server ended"; }
    if [ -f "$KUBECONFIG" ] && "$kubectl" get --raw /readyz >/dev/null 2>&1; then break; fi
    sleep 0.1
done
"$kubectl" wait --for=condition=Ready node --all --timeout=60s

say "4/6 building the example's image"
context=$run/image
cp -r manifests/examples/hello/image "$context"
cp "$(command -v busybox)" "$context/busybox"
"$skiff" image build --data-dir "$data" --network none -t example.skiff/hello:v1 "$context"
rm -rf "$context"

say "5/6 applying manifests/examples/hello"
"$kubectl" apply -f manifests/examples/hello/hello.yaml
"$kubectl" -n hello rollout status deployment/hello --timeout=120s

say "6/6 asking the Service"
node=$("$kubectl" get node -o jsonpath='{.items[0].status.addresses[?(@.type=="InternalIP")].address}')
url=http://$node:30080/
page=""
for _ in $(seq 100); do
    page=$(curl -s -m 2 "${url}cgi-bin/hello" || true)
    case $page in *"Hello from Skiff"*) break ;; esac
    sleep 0.1
done
case $page in *"Hello from Skiff"*) ;; *) "$kubectl" -n hello get pods,svc,endpointslices -o wide; fail "the application does not answer at $url" ;; esac

"$kubectl" -n hello get pods -o wide
echo
say "the application answers: $url"
echo "    export KUBECONFIG=$KUBECONFIG"
[ "$kubectl" = "$(command -v kubectl || true)" ] || echo "    kubectl is $kubectl"
echo "    the server's log: $run/server.log"
trap - EXIT
if [ "${DETACH:-}" = 1 ]; then
    trap - INT TERM
    echo "    make stop ends it"
    exit 0
fi
echo "    Ctrl-C ends it and leaves nothing behind"
while [ -d "/proc/$pid" ]; do sleep 1 & wait $! || true; done
tail -n 20 "$run/server.log" >&2
stop
fail "the server ended by itself"
