package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// containerd takes the image, and runs it with the printed pod's bounds: two capabilities, a read-only root.
func TestContainerd(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: starts containerd")
	}
	for _, program := range []string{"containerd", "ctr", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("no " + program + ": apt-get install containerd")
		}
	}
	// Not t.TempDir: its path is too long for the sockets of shims.
	dir, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"+
		"[grpc]\n  address = %q\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = %q\n",
		dir+"/root", dir+"/state", dir+"/sock", dir+"/opt")
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	daemon := exec.Command("containerd", "--config", dir+"/config.toml")
	daemon.Stdout, daemon.Stderr = &log, &log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Process.Signal(os.Interrupt)
		ended := make(chan error, 1)
		go func() { ended <- daemon.Wait() }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			daemon.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	ctr := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("ctr", append([]string{"--address", dir + "/sock", "--namespace", "k8s.io"},
			args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if exec.Command("ctr", "--address", dir+"/sock", "version").Run() == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("containerd does not answer")
		}
	}
	const image = "docker.io/library/appliance:v1.2.3"
	ctr("images", "import", name(t, "_image.tar"))
	if list := ctr("images", "ls", "-q"); !strings.Contains(list, image) {
		t.Errorf("imported %s", list)
	}
	// The same as the program packs itself.
	own := filepath.Join(dir, "own.tar")
	packed, err := exec.Command(filepath.Join(dist(t), "bin", "appliance-linux-"+made.arch.name), "image", "--image",
		"registry.example.org/own:v1").Output()
	if err == nil {
		err = os.WriteFile(own, packed, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctr("images", "import", own)
	// And both as docs/install.md has it.
	page, err := os.ReadFile("../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range block.FindAllStringSubmatch(string(page), -1) {
		if b[1] != "image" {
			continue
		}
		guide := exec.Command("sh", "-euxc", "v=v1.2.3; a="+made.arch.name+"; appliance() { ./bin/appliance-linux-$a \"$@\"; }\n"+b[2])
		guide.Dir, guide.Env = dist(t), append(os.Environ(), "CONTAINERD_ADDRESS="+dir+"/sock")
		if out, err := guide.CombinedOutput(); err != nil || strings.Count(string(out), "unpacking") != 2 {
			t.Errorf("the commands of docs/install.md: %v\n%s", err, out)
		}
	}
	bounds := []string{"run", "--rm", "--snapshotter", "native", "--read-only", "--seccomp", "--cap-add", "CAP_NET_ADMIN"}
	// ctr knows no ALL; of what it gives by default only NET_RAW stays.
	for _, c := range []string{"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "SETGID", "SETUID", "SETFCAP",
		"SETPCAP",
		"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"} {
		bounds = append(bounds, "--cap-drop", "CAP_"+c)
	}
	for id, image := range map[string]string{"one": image, "two": "registry.example.org/own:v1"} {
		run := append(slices.Clone(bounds), image, "appliance-test-"+id, "/appliance", "version")
		if got := ctr(run...); got != "appliance v1.2.3\n" {
			t.Errorf("%s says %q", image, got)
		}
	}
	// The doctor finds the pod's bounds wide enough. It has a network of its own here, so it finds no interface.
	run := append(slices.Clone(bounds), image, "appliance-test-doctor", "/appliance", "doctor", "--json")
	var found struct {
		Findings []struct{ Check, Severity, What string }
	}
	// Whether it finds a problem of this machine, and so fails, is not the question.
	cmd := exec.Command("ctr", append([]string{"--address", dir + "/sock", "--namespace", "k8s.io"}, run...)...)
	out, runErr := cmd.Output()
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("%v, %v\n%s", runErr, err, out)
	}
	for _, f := range found.Findings {
		if (f.Check == "privileges" || f.Check == "nf_tables") && f.Severity != "fine" {
			t.Errorf("in the container: %+v", f)
		}
	}
}
