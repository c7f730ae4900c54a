#!/bin/sh
# Installs what a fresh Debian 12 lacks for building and testing Skiff. Says nothing when nothing is missing.
set -eu
need=""
have() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -q '^installed$'; }
for p in protobuf-compiler libseccomp-dev busybox-static gcc make pkg-config iproute2 curl ca-certificates "$@"; do
    have "$p" || need="$need $p"
done
if [ -n "$need" ]; then
    [ "$(id -u)" = 0 ] || { echo "hack/setup.sh: packages are missing ($need ): run it as root, or install them" >&2; exit 1; }
    echo "installing:$need"
    apt-get -qq update
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $need >/dev/null
fi
command -v cargo >/dev/null 2>&1 || { echo "hack/setup.sh: cargo is missing: install Rust 1.95 or newer (rustup)" >&2; exit 1; }
