#!/bin/sh
# Builds the demo image: sh build.sh WORK SOURCES SUITE FIT PYTHON_PACKAGE_SETS...
# Writes the OCI layout WORK/layout with the tag "demo"; WORK is an empty directory. SOURCES is a file of apt source lines
# for SUITE, FIT the image's program; each further argument is one layer's packages, separated by spaces.
#
# To be run in a mount and PID namespace of its own, so that neither a mount nor a process can outlive it.
set -eu
work=$1 sources=$2 suite=$3 fit=$4
shift 4
bundle=$work/bundle rootfs=$work/bundle/rootfs
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

layer() { # layer MESSAGE: what changed in the root file system becomes the image's next layer
	echo "demo image: layer: $1"
	rm -rf "$rootfs"/var/lib/apt/lists/* "$rootfs"/var/cache/apt/*.bin "$rootfs"/var/cache/apt/archives/*.deb
	umoci --log=error repack --refresh-bundle --image "$work/layout:demo" --history.created_by "$1" "$bundle"
}

# apt runs outside and dpkg inside, so apt uses this machine's network settings and leaves nothing but packages behind.
debs() {
	# shellcheck disable=SC2086
	apt-get -q=2 -o Dir="$rootfs" -o Dir::State::lists="$work/lists" -o Dir::Log="$work" \
		-o APT::Sandbox::User=root -o APT::Install-Recommends=false -o Acquire::Languages=none -o Dpkg::Use-Pty=0 \
		-o Dir::Etc::sourcelist="$sources" -o Dir::Etc::sourceparts=/dev/null \
		-o DPkg::Chroot-Directory="$rootfs" "$@" >>"$work/apt.log" 2>&1 || { tail -n 40 "$work/apt.log" >&2; exit 1; }
}

mkdir -p "$work/lists/partial"
umoci --log=error init --layout "$work/layout"
umoci --log=error new --image "$work/layout:demo"
umoci --log=error unpack --image "$work/layout:demo" "$bundle"

mmdebstrap --quiet --variant=minbase --mode=root --skip=cleanup/apt/lists "$suite" "$rootfs" "$sources"
layer "debian $suite"

mount --rbind /dev "$rootfs/dev"
mount -t proc proc "$rootfs/proc"
debs update
for packages in "$@"; do
	# shellcheck disable=SC2086
	debs --yes install $packages
	umount -R "$rootfs/dev"
	umount "$rootfs/proc"
	layer "apt-get install $packages"
	mount --rbind /dev "$rootfs/dev"
	mount -t proc proc "$rootfs/proc"
done
umount -R "$rootfs/dev"
umount "$rootfs/proc"

mkdir "$rootfs/app"
install -m 0644 "$fit" "$rootfs/app/fit.py"
layer "fit.py"
umoci --log=error config --image "$work/layout:demo" --config.entrypoint python3 --config.entrypoint /app/fit.py \
	--config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --config.workingdir /
umoci --log=error gc --layout "$work/layout"
