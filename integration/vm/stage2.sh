#!/run/vm/busybox sh
# The first process in the host's root: mounts what a program expects, runs
# the command, tells its exit code, and turns the machine off.
bb=/run/vm/busybox
. /run/vm/command

$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
$bb mkdir -p /dev/pts /dev/shm
$bb mount -t devpts devpts /dev/pts
$bb mount -t tmpfs tmpfs /dev/shm
$bb mount -t cgroup2 cgroup2 /sys/fs/cgroup
$bb ln -s /proc/self/fd /dev/fd
$bb ln -s /proc/self/fd/0 /dev/stdin
$bb ln -s /proc/self/fd/1 /dev/stdout
$bb ln -s /proc/self/fd/2 /dev/stderr
$bb hostname guest
$bb ip link set lo up

# The kernel loads modules by itself: its request runs our modprobe, which
# finds them where every modprobe looks.
$bb mkdir -p "/lib/modules/$version"
$bb mount --bind "$modules" "/lib/modules/$version"
echo '#!/run/vm/busybox sh
exec /run/vm/busybox modprobe "$@"' >/run/vm/modprobe
$bb chmod 755 /run/vm/modprobe
echo /run/vm/modprobe >/proc/sys/kernel/modprobe

# The kernel patches its own code while it boots, when the first hook of a kind
# comes and when the last one goes. An emulated processor that runs that code at
# the same moment may crash on half an instruction. So it boots with one
# processor, and one hook of each kind stays, out of the way.
keep() { # FAMILY HOOK...: a table with a chain in each hook
	echo "table $1 keep {"
	shift
	for hook; do
		echo "chain ${hook%% *} { type filter hook $hook priority 0;
		}"
	done
	echo "}"
}
{
	keep netdev "ingress device lo"
	keep ip prerouting input forward output postrouting
	keep ip6 prerouting input forward output postrouting
	keep arp input output
} >/run/vm/hooks
keep bridge prerouting input forward output postrouting >/run/vm/hooks-bridge
(
	PATH=$PATH:/usr/sbin:/sbin
	exec $bb unshare -n $bb sh -c '
		for file in /run/vm/hooks*; do nft -f $file; done
		: >/run/vm/hooked
		exec /run/vm/busybox sleep 1000000'
) &
i=0
while [ $i -lt 100 ] && ! [ -e /run/vm/hooked ]; do
	$bb usleep 50000
	i=$((i + 1))
done
for cpu in /sys/devices/system/cpu/cpu*/online; do
	echo 1 >"$cpu"
done 2>/dev/null

for port in /sys/class/virtio-ports/vport*; do
	read -r name <"$port/name"
	$bb ln -s "/dev/${port##*/}" "/run/vm/$name"
done

# A port can be opened once, and programs reopen /dev/stderr: pipes are between.
$bb mkfifo /run/vm/out /run/vm/err
$bb cat /run/vm/out >/run/vm/stdout &
out=$!
$bb cat /run/vm/err >/run/vm/stderr &
err=$!

# stage 2 keeps no end of the pipes, so that they close with the command.
(
	cd "$dir" || exit 127
	start
) </dev/null >/run/vm/out 2>/run/vm/err
code=$?

# What the command left behind may hold the pipes open: wait a while only.
i=0
while [ $i -lt 20 ] && { kill -0 $out || kill -0 $err; } 2>/dev/null; do
	$bb usleep 100000
	i=$((i + 1))
done
echo $code >/run/vm/exit
$bb poweroff -f
