package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appliance/integration/scene"
	"appliance/lab"
)

// TestEtcd puts three etcd servers behind the VIP, where etcdctl writes and
// watches while the holder dies.
func TestEtcd(t *testing.T) {
	for _, program := range []string{"etcd", "etcdctl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: apt-get install etcd-server etcd-client", program)
		}
	}
	// The servers are machines of their own, so that the fault is the
	// balancer's alone.
	tr := serve(t, scene.Setup{Family: scene.IPv4, NoServers: true})
	e := &etcd{tr: tr}
	e.start(t)
	tr.ready(t, 0, 1, 2)
	for _, vip := range tr.VIPs {
		if err := tr.Client.WaitPort(patient(t), tr.Target(vip)); err != nil {
			t.Fatal(err)
		}
	}
	holder := tr.holder(t, 0, 1, 2)

	watch := e.watch(t)
	const writes = 60
	var acknowledged []string
	for i := range writes {
		if i == writes/3 {
			tr.app.Kill(holder)
		}
		value := fmt.Sprintf("value-%02d", i)
		// A write that fell into the outage is tried again, as clients do.
		var err error
		for ctx := patient(t); ctx.Err() == nil; {
			if _, err = e.ctl(ctx, "put", "key", value); err == nil {
				break
			}
			t.Logf("put %s: %v", value, err)
		}
		if err != nil {
			t.Fatal(err)
		}
		acknowledged = append(acknowledged, value)
	}
	tr.holder(t, others(holder)...)
	out, err := e.ctl(patient(t), "get", "key", "--print-value-only")
	if last := acknowledged[len(acknowledged)-1]; err != nil || strings.TrimSpace(out) != last {
		t.Errorf("the last value read is %q, %v; want %q", out, err, last)
	}
	// etcdctl connects its watch again where it broke, so it sees them all.
	watch.expect(t, acknowledged)
	tr.oneAnswer(t)
}

type etcd struct {
	tr *trial
}

func (e *etcd) start(t *testing.T) {
	t.Helper()
	var cluster []string
	for i, b := range e.tr.Backends {
		cluster = append(cluster, fmt.Sprintf("s%d=http://%s:2380", i+1, b[0].Addr()))
	}
	for i, b := range e.tr.Backends {
		peer := fmt.Sprintf("http://%s:2380", b[0].Addr())
		dir := filepath.Join(e.tr.Dir, fmt.Sprintf("etcd%d", i+1))
		cmd := exec.Command("etcd", "--name", fmt.Sprintf("s%d", i+1), "--data-dir", dir,
			"--listen-client-urls", fmt.Sprintf("http://0.0.0.0:%d", scene.Port),
			"--advertise-client-urls", fmt.Sprintf("http://%s", b[0]),
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(cluster, ","),
			"--log-level", "error")
		// Its arguments say it all.
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		if _, err := e.tr.Servers[i].Start(cmd); err != nil {
			t.Fatal(err)
		}
	}
	for ctx := patient(t); ; time.Sleep(50 * time.Millisecond) {
		_, err := e.ctlAt(ctx, fmt.Sprintf("http://%s", e.tr.Backends[0][0]), "put", "ready", "yes")
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("etcd does not get ready: %v", err)
		}
	}
}

// ctl runs etcdctl on the client, against the VIP.
func (e *etcd) ctl(ctx context.Context, args ...string) (string, error) {
	return e.ctlAt(ctx, "http://"+e.tr.Target(e.tr.VIPs[0]).String(), args...)
}

func (e *etcd) ctlAt(ctx context.Context, endpoint string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "etcdctl",
		append([]string{"--endpoints", endpoint, "--dial-timeout", "1s", "--command-timeout", "2s"}, args...)...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := e.tr.Client.Start(cmd)
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		err = fmt.Errorf("etcdctl %s: %w: %s", args[0], err, out.String())
	}
	return out.String(), err
}

// A watcher is an etcdctl watch.
type watcher struct {
	process *lab.Process
	values  chan string
}

func (e *etcd) watch(t *testing.T) *watcher {
	t.Helper()
	cmd := exec.Command("etcdctl", "--endpoints", "http://"+e.tr.Target(e.tr.VIPs[0]).String(),
		"--keepalive-time", "1s", "--keepalive-timeout", "1s", "watch", "key")
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = out
	w := &watcher{values: make(chan string, 1000)}
	w.process, err = e.tr.Client.Start(cmd)
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "value-") {
				w.values <- lines.Text()
			}
		}
		io.Copy(io.Discard, in)
	}()
	t.Cleanup(func() {
		w.process.Kill()
		<-done
		in.Close()
	})
	// The watch has begun when it reports a write.
	for ctx := patient(t); ; {
		if _, err := e.ctl(ctx, "put", "key", "value-first"); err != nil {
			t.Fatal(err)
		}
		select {
		case <-w.values:
			return w
		case <-ctx.Done():
			t.Fatal("the watch reports nothing")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// expect waits until the watch has reported every value.
func (w *watcher) expect(t *testing.T, values []string) {
	t.Helper()
	ctx := patient(t)
	missing := map[string]bool{}
	for _, v := range values {
		missing[v] = true
	}
	for len(missing) > 0 {
		select {
		case v := <-w.values:
			delete(missing, v)
		case <-w.process.Done():
			t.Fatalf("the watch ended: %v", w.process.Wait())
		case <-ctx.Done():
			t.Fatalf("the watch has not seen %v", missing)
		}
	}
}
