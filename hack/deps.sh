#!/bin/bash
# Installs the Debian/Ubuntu packages that the tests and the demo use, those that are missing only. No service is started
# by it: the tests and the demo run their own containerd and registry on sockets and ports of their own.
set -euo pipefail

# One line for each use.
packages=(
    containerd runc                # what we plug into
    containernetworking-plugins    # pods have a network
    docker-registry                # a real registry on loopback
    nginx                          # what the registry proxy is compared with
    mmdebstrap umoci               # build the demo's image
    skopeo                         # push it, and pull through the registry proxy
    podman buildah                 # pull through the registry proxy
    erofs-utils                    # fsck.erofs and mkfs.erofs judge our images
    fuse3                          # fusermount3
    gcc libc6-dev                  # the race detector
    iproute2 ca-certificates git
)

missing=()
for p in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing+=("$p")
done
# The demo's image is built from the repositories in apt's package lists, which a machine may have all packages but not have.
lists() { compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null; }
if [ ${#missing[@]} -eq 0 ]; then
    lists || apt-get update -q </dev/null
    exit 0
fi

if [ "$(id -u)" != 0 ]; then
    echo "deps: missing packages, run as root: apt-get install ${missing[*]}" >&2
    exit 1
fi

# invoke-rc.d asks this file before it starts a service. One that an administrator or a container image put there stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
echo "deps: installing ${missing[*]}"
apt-get update -q </dev/null
apt-get install -q -y "${missing[@]}" </dev/null
