package connlog

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that end at once.
const patience = 60 * time.Second

func run(t *testing.T, c Config) (s *Sink, stop func()) {
	t.Helper()
	c.Log = slog.New(slog.DiscardHandler)
	c.Facility = 16
	s = New(c)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return s, stop
}

// await waits until what holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestFile: lines go to the file at the path, also after another one has taken its place.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "conn.log")
	s, stop := run(t, Config{To: path})
	s.Write("one")
	content := func(path string) string {
		text, _ := os.ReadFile(path)
		return string(text)
	}
	await(t, "the first line", func() bool { return content(path) == "one\n" })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	await(t, "a line in the new file", func() bool {
		s.Write("two")
		return strings.Contains(content(path), "two\n")
	})
	s.Write("last")
	stop()
	if !strings.HasSuffix(content(path), "last\n") {
		t.Errorf("the line before the end is lost: %q", content(path))
	}
	if n := s.Counts(); n.Written < 3 || n.Dropped != 0 || n.Trouble != "" {
		t.Errorf("%+v", n)
	}
}

// TestSyslog: the forms of the three ways to a syslog.
func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	local, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	packet := func(c net.PacketConn) func() string {
		return func() string {
			buf := make([]byte, 2048)
			_ = c.SetReadDeadline(time.Now().Add(patience))
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				t.Error(err)
			}
			return string(buf[:n])
		}
	}
	const rfc5424 = `<134>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \S+ appliance \d+ connection - hello`
	for to, of := range map[string]struct {
		read func() string
		want string
	}{
		"unix:" + path:                      {packet(local), `^<134>\w{3} [ \d]\d \d\d:\d\d:\d\d appliance\[\d+\]: hello$`},
		"udp://" + udp.LocalAddr().String(): {packet(udp), "^" + rfc5424 + "$"},
		"tcp://" + tcp.Addr().String(): {func() string {
			conn, err := tcp.Accept()
			if err != nil {
				t.Error(err)
				return ""
			}
			defer conn.Close()
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			r := bufio.NewReader(conn)
			var n int
			if _, err := fmt.Fscanf(r, "%d ", &n); err != nil {
				t.Error(err)
			}
			message := make([]byte, n)
			_, _ = io.ReadFull(r, message)
			return string(message)
		}, "^" + rfc5424 + "$"},
	} {
		s, stop := run(t, Config{To: to})
		s.Write("hello")
		if got := of.read(); !regexp.MustCompile(of.want).MatchString(got) {
			t.Errorf("%s: %q", to, got)
		}
		stop()
	}
}

// TestSlowReader: nobody waits for a reader that does not read, and what is lost is counted.
func TestSlowReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	s, stop := run(t, Config{To: "stderr", Stderr: w})
	line := strings.Repeat("x", 1000)
	const lines = 3 * waiting
	began := time.Now()
	for range lines {
		s.Write(line)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("%d lines took %s", lines, took)
	}
	await(t, "the trouble is known", func() bool {
		n := s.Counts()
		return n.Dropped > 0 && n.Trouble == "its reader is too slow"
	})
	stop()
	if n := s.Counts(); n.Written == 0 || n.Written+n.Dropped != lines {
		t.Errorf("%+v of %d", n, lines)
	}
}

// TestGone: a syslog that is not there yet is tried again.
func TestGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	s, _ := run(t, Config{To: "unix:" + path})
	s.Write("lost")
	await(t, "the trouble is known", func() bool {
		n := s.Counts()
		return n.Dropped == 1 && n.Trouble != ""
	})
	local, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	await(t, "a line arrives", func() bool {
		s.Write("there")
		n := s.Counts()
		return n.Written > 0 && n.Trouble == ""
	})
}

// TestOwnLog: the program's own lines have the severities of their levels, and a type of their own.
func TestOwnLog(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	s, _ := run(t, Config{To: "udp://" + udp.LocalAddr().String()})
	for level, priority := range map[slog.Level]int{
		slog.LevelDebug: 135, slog.LevelInfo: 134, slog.LevelWarn: 132, slog.LevelError: 131,
	} {
		s.Log(level, "said")
		buf := make([]byte, 2048)
		_ = udp.SetReadDeadline(time.Now().Add(patience))
		n, _, err := udp.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:n]); !strings.HasPrefix(got, fmt.Sprintf("<%d>1 ", priority)) ||
			!strings.HasSuffix(got, " log - said") {
			t.Errorf("%s: %q", level, got)
		}
	}
	s.Skip()
	await(t, "all are counted", func() bool { return s.Counts() == Counts{Written: 4, Skipped: 1} })
}
