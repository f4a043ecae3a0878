#!/bin/sh
# Puts a Linux kernel that has ip_vs into the cache, for the tests that run in
# a virtual machine. Nothing of the kernel is installed on this host. What is
# there already is kept, so that a second run takes no time.
#
#   KERNEL_PACKAGE  another package, such as linux-image-6.1.0-50-amd64
#   APPLIANCE_VM    another cache directory
#
# Exit 77 means that this machine cannot have it; the reason is on stderr.
set -eu

skip() {
	echo "fetch-kernel: $*" >&2
	exit 77
}

cache=${APPLIANCE_VM:-${XDG_CACHE_HOME:-$HOME/.cache}/appliance/vm}

[ "$(uname -m)" = x86_64 ] || skip "kernels for $(uname -m) are not known here; run this on x86_64"
command -v apt-get >/dev/null || skip "no apt-get; put vmlinuz and lib/modules/<version> into $cache by hand"

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# The tests in the machine use ip, nft and ipvsadm of this host.
missing=
for pair in qemu-system-x86_64=qemu-system-x86 busybox=busybox-static xz=xz-utils \
	ip=iproute2 nft=nftables ipvsadm=ipvsadm; do
	PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || missing="$missing ${pair#*=}"
done
if [ -n "$missing" ]; then
	as_root apt-get update -qq >&2 || true
	# shellcheck disable=SC2086 # a list of words
	as_root apt-get install -y -qq --no-install-recommends $missing >&2 ||
		skip "cannot install$missing; install them as root and run this again"
fi
busybox=$(command -v busybox)

if [ -s "$cache/vmlinuz" ] && [ -s "$cache/ready" ] &&
	{ [ -z "${KERNEL_PACKAGE:-}" ] || [ "$(cat "$cache/ready")" = "$KERNEL_PACKAGE" ]; }; then
	exit 0
fi

# A meta package names the newest kernel. The cloud kernels have no 9p.
package=${KERNEL_PACKAGE:-}
for meta in linux-image-6.12-amd64 linux-image-amd64; do
	[ -n "$package" ] && break
	package=$(apt-cache depends "$meta" 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*-amd64\)$/\1/p' | head -n 1)
done
[ -n "$package" ] || skip "apt knows no Debian kernel; set KERNEL_PACKAGE to the name of a linux-image package"

mkdir -p "$(dirname "$cache")"
work=$(mktemp -d "$cache.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
chmod 755 "$work"

(cd "$work" && apt-get download -qq "$package" >&2 2>/dev/null) ||
	{ as_root apt-get update -qq >&2 && (cd "$work" && apt-get download -qq "$package" >&2 2>/dev/null); } ||
	skip "cannot download $package; check the network and apt's sources"
dpkg -x "$work"/*.deb "$work/root"
rm "$work"/*.deb

set -- "$work"/root/boot/vmlinuz-*
[ -f "$1" ] || skip "$package has no /boot/vmlinuz"
version=${1##*/vmlinuz-}
modules=$work/root/lib/modules/$version
[ -d "$modules" ] || modules=$work/root/usr/lib/modules/$version
mv "$1" "$work/vmlinuz"

# Only what a network test can want, and unpacked: xz under emulation is slow.
keep=$work/lib/modules/$version
mkdir -p "$keep/kernel"
for part in crypto lib net fs/9p fs/netfs fs/fscache fs/overlayfs drivers/net drivers/block drivers/virtio \
	drivers/char/hw_random drivers/char/virtio_console.ko drivers/char/virtio_console.ko.xz arch/x86/crypto; do
	[ -e "$modules/kernel/$part" ] || continue
	mkdir -p "$keep/kernel/$(dirname "$part")"
	mv "$modules/kernel/$part" "$keep/kernel/$part"
done
for part in ethernet wireless usb wwan can arcnet hamradio fddi phy mdio; do
	rm -rf "$keep/kernel/drivers/net/$part"
done
for part in bluetooth mac80211 wireless sunrpc atm ax25 batman-adv rxrpc rds smc tipc nfc mptcp can; do
	rm -rf "${keep:?}/kernel/net/$part"
done
find "$keep" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 xz -d
find "$keep" -name '*.ko.zst' -print0 | xargs -0 -r -n 64 zstd -q --rm -d
cp "$modules"/modules.builtin* "$modules/modules.order" "$keep/" 2>/dev/null || true
"$busybox" depmod -b "$work" "$version"
[ -s "$keep/modules.dep" ] || skip "busybox depmod wrote no modules.dep for $version"

# "ready" goes last: what is there without it is not complete.
mkdir -p "$cache"
rm -rf "$cache/ready" "$cache/vmlinuz" "$cache/lib"
mv "$work/vmlinuz" "$work/lib" "$cache/"
echo "$package" >"$cache/ready"
echo "fetch-kernel: $package is in $cache" >&2
