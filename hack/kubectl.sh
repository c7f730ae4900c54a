#!/bin/sh
# Prints the path of a kubectl that is 1.30 or newer: the one on PATH, or Debian's own from a newer suite, unpacked
# beside the build and not installed over the system's. Usage: hack/kubectl.sh [SUITE]  (default: trixie)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
suite=${1:-}

minor() { "$1" version --client -o json 2>/dev/null | sed -n 's/.*"minor": *"\([0-9]*\).*/\1/p' | head -n1; }

if [ -z "$suite" ] && command -v kubectl >/dev/null 2>&1; then
    found=$(command -v kubectl)
    if [ "$(minor "$found" || echo 0)" -ge 30 ] 2>/dev/null; then echo "$found"; exit 0; fi
fi

suite=${suite:-trixie}
out="$root/target/tools/$suite"
bin="$out/usr/bin/kubectl"
if [ -x "$bin" ]; then echo "$bin"; exit 0; fi

# The mirror that this machine's apt is configured with.
mirror=$(apt-get indextargets --format '$(SITE) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    awk '$3 == "main" && $1 !~ /security/ { print $1; exit }')
if [ -z "$mirror" ]; then
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' | grep -m1 '/debian' || true)
fi
[ -n "$mirror" ] || { echo "hack/kubectl.sh: no Debian mirror in apt's configuration; install kubectl 1.30 or newer yourself" >&2; exit 1; }

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
: >"$tmp/status" # what is installed must not take part in the choice
mkdir -p "$tmp/lists/partial" "$tmp/cache/archives/partial" "$tmp/parts" "$out"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$tmp/sources.list"
apt="-o Dir::Etc::sourcelist=$tmp/sources.list -o Dir::Etc::sourceparts=$tmp/parts -o Dir::State::lists=$tmp/lists
 -o Dir::State::status=$tmp/status -o Dir::Cache::archives=$tmp/cache/archives -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root"
# shellcheck disable=SC2086
apt-get $apt -qq update >&2
# shellcheck disable=SC2086
(cd "$tmp" && apt-get $apt -qq download kubectl >&2)
for deb in "$tmp"/*.deb; do dpkg-deb -x "$deb" "$out"; done
[ -x "$bin" ] || { echo "hack/kubectl.sh: the kubectl package of $suite has no usr/bin/kubectl" >&2; exit 1; }
echo "$bin"
