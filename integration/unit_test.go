package integration

import (
	"strings"
	"testing"

	"appliance/integration/vm"
)

// unitScript runs the printed unit by a systemd of its own, beside what an older version has left as root.
const unitScript = `exec 2>&1
useradd --system --user-group --no-create-home --home-dir /var/lib/appliance --shell /usr/sbin/nologin appliance
ip link set lo up
ip link add eth0 type veth peer name eth1
ip addr add 192.0.2.2/24 dev eth0
ip link set eth0 up
ip link set eth1 up
cp "$APPLIANCE_TEST_BINARY" /usr/local/bin/appliance
chmod 755 /usr/local/bin/appliance
export PATH=/usr/local/bin:$PATH
umask 077
mkdir -p /etc/appliance /var/lib/appliance
echo votes > /var/lib/appliance/old
appliance keygen > /etc/appliance/group.key
cat > /etc/appliance/config.yaml <<U
vips: [192.0.2.10]
peers: [192.0.2.2]
singleNode: true
group: {heartbeat: 5s}
loadBalancers:
- {name: a, port: 443, dataPlane: ipvs, backends: ["192.0.2.3:6443"], check: {type: none}}
U
appliance manifest --kind systemd --config /etc/appliance/config.yaml > /etc/systemd/system/appliance.service
cat > /etc/systemd/system/look.service <<U
[Unit]
After=appliance.service
Wants=appliance.service
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/bash /look.sh
StandardOutput=file:/look.out
StandardError=file:/look.out
ExecStopPost=/bin/systemctl --force --force poweroff
U
cat > /look.sh <<'U'
answers() { until appliance status 2>&1 | grep -q 'eth0 .* yes    yes'; do sleep 1; done; }
answers
appliance status | grep may:
echo "ipvs: $(ipvsadm -Ln | grep -c 192.0.2.10:443)"
echo "forwards: $(cat /proc/sys/net/ipv4/ip_forward)"
stat -c '%n %A %U %G' /etc/appliance /etc/appliance/* /var/lib/appliance /var/lib/appliance/old /run/appliance/*
echo "# by hand" >> /etc/appliance/config.yaml
chown root:root /etc/appliance/config.yaml
chmod 600 /etc/appliance/config.yaml
systemctl reload appliance && echo reloaded
systemctl restart appliance
answers
echo restarted
U
mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null
unshare --pid --fork --mount --mount-proc bash -c 'mount -t tmpfs tmpfs /run; mkdir -p /run/systemd
export container=other; exec /lib/systemd/systemd --system --unit=look.service --show-status=0 --log-target=null'
cat /look.out
`

// TestUnit runs the systemd unit by systemd, in a virtual machine, with the data plane that needs most of the kernel.
func TestUnit(t *testing.T) {
	guidesOnly(t)
	inputs(t)
	var out strings.Builder
	runInVM(t, vm.Spec{Stdout: &out}, "bash", "-c", unitScript)
	for _, want := range []string{
		"NET_ADMIN NET_BIND_SERVICE NET_RAW, no_new_privs, seccomp, not dumpable\n", "ipvs: 1\n", "forwards: 1\n",
		"/etc/appliance drwxr-x--- root appliance\n",
		"/etc/appliance/config.yaml -rw-r----- root appliance\n",
		"/etc/appliance/group.key -rw-r----- root appliance\n",
		"/var/lib/appliance drwx------ appliance appliance\n",
		"/var/lib/appliance/old -rw------- appliance appliance\n",
		"/run/appliance/appliance.sock srw------- appliance appliance\n",
		"reloaded\n", "restarted\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it lacks %q", want)
		}
	}
	if strings.Contains(out.String(), "user 0,") {
		t.Error("it runs as root")
	}
	if t.Failed() {
		t.Log(out.String())
	}
}
