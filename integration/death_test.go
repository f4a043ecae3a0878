package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestDeathIsHeardFirst: the kernel closes the files of a dead process from the
// highest number down, and closes packet sockets slowly. The peer port and its
// connections must be closed before those, so they need higher numbers.
func TestDeathIsHeardFirst(t *testing.T) {
	tr := gather(t)
	tr.begin(t)
	tr.Ask(t.Context())
	tr.steady(t, time.Now())
	for i, n := range tr.Nodes {
		pid := tr.app.Process(i).Cmd.Process.Pid
		files := socketFiles(t, pid)
		// packet(7): sk, refs, type, proto, interface, running, memory, user, inode
		packets := numbersOf(files, socketTable(t, pid, "packet", 8, nil))
		// proc_pid_net(5): the local address is the second column, the inode the tenth.
		peerPort := fmt.Sprintf(":%04X", 10000)
		peers := numbersOf(files, socketTable(t, pid, "tcp", 9,
			func(f []string) bool { return strings.HasSuffix(f[1], peerPort) }))
		if len(packets) == 0 || len(peers) < 3 {
			t.Fatalf("%s has %d packet sockets, and %d on the peer port", n.Name, len(packets), len(peers))
		}
		if slices.Min(peers) < slices.Max(packets) {
			t.Errorf("%s: the peers' sockets are files %v, and packet sockets are files %v", n.Name, peers, packets)
		}
	}
}

// socketFiles are the numbers of a process's sockets by inode.
func socketFiles(t *testing.T, pid int) map[string]int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]int)
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		if inode, ok := strings.CutPrefix(to, "socket:["); ok {
			n, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			files[strings.TrimSuffix(inode, "]")] = n
		}
	}
	return files
}

// socketTable are the inodes in a table of /proc/PID/net, of the lines that ok accepts.
func socketTable(t *testing.T, pid int, name string, column int, ok func(fields []string) bool) (inodes []string) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n")[1:] {
		if f := strings.Fields(line); len(f) > column && (ok == nil || ok(f)) {
			inodes = append(inodes, f[column])
		}
	}
	return inodes
}

// numbersOf are the file numbers of those sockets that are the process's own.
func numbersOf(files map[string]int, inodes []string) (numbers []int) {
	for _, inode := range inodes {
		if n, ok := files[inode]; ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers
}
