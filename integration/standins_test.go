package integration

import (
	"context"
	order "encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// standIn has the test binary become a program that Debian does not have, and that the guides meet on a node:
//
//	kubelet   runs the pods of /etc/kubernetes/manifests: in containerd, where a box has one, with exactly what the pod
//	          says of privileges, mounts and network, and otherwise as processes of what their images stand for
//	kube-vip  has what kube-vip in ARP mode has on the host and the wire: whoever has the lease has the address on the
//	          interface, and says so by gratuitous ARP. The lease is a locked file, not one of Kubernetes
//	lvscare   has what sealos' lvscare has in the kernel: a service of IPVS and its servers, kept there, and left there
//	          at the end
const standIn = "APPLIANCE_TEST_STAND_IN"

// leaseFile names the file that stands for the lease of kube-vip.
const leaseFile = "APPLIANCE_TEST_LEASE"

func standsFor(name string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch name {
	case "kubelet":
		return kubelet(ctx)
	case "kube-vip":
		return kubeVIP(ctx)
	case "lvscare":
		return lvscare(ctx, args)
	}
	return fmt.Errorf("nothing stands for %q", name)
}

// kubelet starts the stand-in for it on a box.
func (b *box) kubelet(t *testing.T, env ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unit := fmt.Sprintf("[Service]\nExecStart=%s\nEnvironment=%s=kubelet %s\n", self, standIn, strings.Join(env, " "))
	b.write(t, "etc/systemd/system/kubelet.service", unit, 0o644)
	b.run(t, "mkdir -p /etc/kubernetes/manifests\nsystemctl enable --now kubelet")
}

const manifests = "/etc/kubernetes/manifests"

// kubelet runs a pod for as long as its file is there, each container as a process.
func kubelet(ctx context.Context) error {
	running := make(map[string]*container)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		wanted, err := filepath.Glob(filepath.Join(manifests, "*.y*ml"))
		if err != nil {
			return err
		}
		for file, c := range running {
			if slices.Contains(wanted, file) && !c.ended() {
				continue
			}
			c.stop()
			delete(running, file)
		}
		for _, file := range wanted {
			if running[file] != nil {
				continue
			}
			c, err := startPod(file)
			if err != nil {
				fmt.Fprintln(os.Stderr, file, err) // as long as it is being written
				continue
			}
			running[file] = c
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

type container struct {
	cmd  *exec.Cmd
	term syscall.Signal // the image's STOPSIGNAL
	done chan struct{}
}

func (c *container) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *container) stop() {
	c.cmd.Process.Signal(c.term)
	select {
	case <-c.done:
	case <-time.After(30 * time.Second): // terminationGracePeriodSeconds, by default
		c.cmd.Process.Kill()
		<-c.done
	}
}

func startPod(file string) (*container, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(text, &pod); err != nil {
		return nil, err
	}
	if len(pod.Spec.Containers) != 1 {
		return nil, errors.New("not one container")
	}
	of := pod.Spec.Containers[0]
	c := &container{term: syscall.SIGTERM, done: make(chan struct{})}
	if _, err := os.Stat("/run/containerd/containerd.sock"); err == nil {
		if c.cmd, err = inContainerd(&pod); err != nil {
			return nil, err
		}
	} else if c.cmd, err = asProcess(of); err != nil {
		return nil, err
	}
	if strings.Contains(of.Image, "nginx") {
		c.term = syscall.SIGQUIT
	}
	c.cmd.Stdout, c.cmd.Stderr = os.Stderr, os.Stderr
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// asProcess is what a container's image stands for.
func asProcess(c corev1.Container) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var cmd *exec.Cmd
	args := append(slices.Clone(c.Command), c.Args...)
	switch name, _, _ := strings.Cut(c.Image[strings.LastIndex(c.Image, "/")+1:], ":"); name {
	case "nginx":
		// The image has the module built in.
		cmd = exec.Command("nginx", "-g", "daemon off; load_module /usr/lib/nginx/modules/ngx_stream_module.so;")
	case "appliance":
		cmd = exec.Command("/usr/local/bin/appliance", args[1:]...)
	case "kube-vip", "lvscare":
		cmd = exec.Command(self, args...)
		cmd.Env = append(os.Environ(), standIn+"="+name)
	default:
		return nil, fmt.Errorf("no such image: %s", c.Image)
	}
	for _, e := range c.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	return cmd, nil
}

// given are the capabilities that ctr gives by itself.
var given = []corev1.Capability{"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID",
	"SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"}

// inContainerd is the command that runs a pod's container in containerd, with what the pod says and no more.
func inContainerd(pod *corev1.Pod) (*exec.Cmd, error) {
	c := pod.Spec.Containers[0]
	may := c.SecurityContext
	if !slices.Equal(may.Capabilities.Drop, []corev1.Capability{"ALL"}) || *may.AllowPrivilegeEscalation || *may.Privileged ||
		!pod.Spec.HostNetwork || pod.Spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		return nil, fmt.Errorf("this is run otherwise here: %+v", may)
	}
	// What is left of an earlier run of the name.
	exec.Command("ctr", "-n", "k8s.io", "containers", "rm", c.Name).Run()
	args := []string{"-n", "k8s.io", "run", "--rm", "--snapshotter", "native", "--net-host", "--seccomp"}
	if *may.ReadOnlyRootFilesystem {
		args = append(args, "--read-only")
	}
	for _, one := range given {
		if !slices.Contains(may.Capabilities.Add, one) {
			args = append(args, "--cap-drop", "CAP_"+string(one))
		}
	}
	for _, one := range may.Capabilities.Add {
		if !slices.Contains(given, one) {
			args = append(args, "--cap-add", "CAP_"+string(one))
		}
	}
	host := make(map[string]*corev1.HostPathVolumeSource)
	for _, v := range pod.Spec.Volumes {
		host[v.Name] = v.HostPath
		if *v.HostPath.Type == corev1.HostPathDirectoryOrCreate {
			if err := os.MkdirAll(v.HostPath.Path, 0o755); err != nil {
				return nil, err
			}
		}
		if _, err := os.Stat(v.HostPath.Path); errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for _, m := range c.VolumeMounts {
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		args = append(args, "--mount", fmt.Sprintf("type=bind,src=%s,dst=%s,options=rbind:%s", host[m.Name].Path, m.MountPath,
			mode))
	}
	image := c.Image
	if !strings.Contains(image, "/") { // as the kubelet's runtime understands a short name
		image = "docker.io/library/" + image
	}
	args = append(args, image, c.Name)
	args = append(args, c.Command...)
	return exec.Command("ctr", append(args, c.Args...)...), nil
}

// kubeVIP has the address for as long as it has the lease.
func kubeVIP(ctx context.Context) error {
	lease, err := os.OpenFile(os.Getenv(leaseFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lease.Close()
	vip, err := netip.ParseAddr(os.Getenv("address"))
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(os.Getenv("vip_interface"))
	if err != nil {
		return err
	}
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for unix.Flock(int(lease.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-retry.C:
		}
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return err
	}
	defer netlink.AddrDel(link, addr)
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		if err := gratuitousARP(link, vip); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
}

// gratuitousARP tells the link who has an address (RFC 5227 section 3).
func gratuitousARP(link netlink.Link, addr netip.Addr) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const etherTypeARP, request = 0x0806, 1 // RFC 826
	mac, ip := link.Attrs().HardwareAddr, addr.As4()
	packet := []byte{0, 1, 8, 0, 6, 4, 0, request}
	packet = slices.Concat(packet, mac, ip[:], make([]byte, 6), ip[:])
	to := &unix.SockaddrLinklayer{Protocol: order.NativeEndian.Uint16([]byte{etherTypeARP >> 8, etherTypeARP & 0xff}),
		Ifindex: link.Attrs().Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	return unix.Sendto(fd, packet, 0, to)
}

// lvscare keeps the service of IPVS that its flags say, as `care --vs VIP:PORT --rs SERVER:PORT...` does.
func lvscare(ctx context.Context, args []string) error {
	var vs string
	servers := make(map[string]bool)
	for i, arg := range args[:len(args)-1] {
		switch arg {
		case "--vs":
			vs = args[i+1]
		case "--rs":
			servers[args[i+1]] = true
		}
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		// Each fails where it is there already.
		exec.Command("ipvsadm", "-A", "-t", vs, "-s", "rr").Run()
		for _, rs := range slices.Sorted(maps.Keys(servers)) {
			exec.Command("ipvsadm", "-a", "-t", vs, "-r", rs, "-m").Run()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
