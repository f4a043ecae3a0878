#!/bin/busybox sh
# Puts the host's root, read-only over 9p, under a writable overlay, and goes
# on there. Writes of the guest end in memory and are lost with it.
bb=/bin/busybox
while read -r module; do
	$bb insmod "$module" || echo "stage1: cannot load $module"
done </modules/order

# The host does not change its programs while the guest runs, so that the
# guest may keep what it has read (cache=loose).
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=1048576,cache=loose root /lower &&
	$bb mount -t tmpfs -o mode=755 tmpfs /writable &&
	$bb mkdir /writable/upper /writable/work &&
	$bb mount -t overlay -o lowerdir=/lower,upperdir=/writable/upper,workdir=/writable/work overlay /new || {
	echo "stage1: cannot mount the host's root"
	$bb poweroff -f
}

# /run is the guest's own: what lies in the host's are sockets of others.
$bb mount -t tmpfs -o mode=755 tmpfs /new/run
$bb mkdir -p /new/run/vm
$bb cp /bin/busybox /stage2 /command /new/run/vm/
exec $bb switch_root /new /run/vm/stage2
