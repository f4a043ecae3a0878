package connlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// waiting is how many lines may wait to be written: some 2 MiB, and seconds of a busy load balancer.
	waiting = 8192
	// writeWithin bounds one write. A reader that is slower is given up until openAgain has passed.
	writeWithin = time.Second
	openAgain   = time.Second
	// lookAgain is the time between two looks whether a file is still the one at its path.
	lookAgain = time.Second
	// finalWithin is how long lines are still written after Run's context has ended.
	finalWithin = 2 * time.Second
)

// Facilities are those of syslog (RFC 5424, section 6.2.1), by number.
var Facilities = []string{
	"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit",
	"alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
}

// The severities of syslog (RFC 5424, section 6.2.1).
const (
	severityError         = 3
	severityWarning       = 4
	severityInformational = 6
	severityDebug         = 7
)

// The message types (RFC 5424, section 6.2.7).
const (
	aboutConnection = "connection"
	aboutProgram    = "log"
)

// Config says where lines go.
type Config struct {
	// To is stderr, syslog (which is unix:/dev/log), unix:/path, udp://address:port, tcp://address:port, or the path of
	// a file. A file that was moved away is opened anew within a second.
	To string
	// Facility is the number of a syslog facility.
	Facility int
	Stderr   *os.File
	// What is what the lines are about, for Log, which gets the begin and the end of a trouble.
	What string
	Log  *slog.Logger
}

// A line is a line as it waits to be written.
type line struct {
	severity   int
	kind, text string
}

// A Sink writes lines.
type Sink struct {
	cfg   Config
	lines chan line

	written, dropped, skipped atomic.Uint64

	mu  sync.Mutex
	err string
}

// New makes a Sink. It opens nothing before there is a line.
func New(cfg Config) *Sink { return &Sink{cfg: cfg, lines: make(chan line, waiting)} }

// Write has a line about a connection written soon, or drops it where too many wait. It never blocks.
func (s *Sink) Write(text string) { s.add(line{severityInformational, aboutConnection, text}) }

// Log does so with a line of the program's own log.
func (s *Sink) Log(level slog.Level, text string) {
	severity := severityDebug
	switch {
	case level >= slog.LevelError:
		severity = severityError
	case level >= slog.LevelWarn:
		severity = severityWarning
	case level >= slog.LevelInfo:
		severity = severityInformational
	}
	s.add(line{severity, aboutProgram, text})
}

func (s *Sink) add(l line) {
	select {
	case s.lines <- l:
	default:
		s.dropped.Add(1)
	}
}

// Skip counts a line that somebody did not want to be written.
func (s *Sink) Skip() { s.skipped.Add(1) }

// Lose counts lines that were lost before they came here.
func (s *Sink) Lose(lines uint64) { s.dropped.Add(lines) }

// Counts say what became of lines.
type Counts struct {
	// Dropped lines were lost because their reader was slow or gone; Skipped ones were more than were wanted.
	Written, Dropped, Skipped uint64
	// Trouble is why none can be written now; empty if they can.
	Trouble string
}

// Counts are the counts since the start.
func (s *Sink) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Counts{Written: s.written.Load(), Dropped: s.dropped.Load(), Skipped: s.skipped.Load(), Trouble: s.err}
}

// A destination is where lines go.
type destination interface {
	write(l line) error
	io.Closer
}

// Run writes lines until ctx ends, and what waits then within finalWithin.
func (s *Sink) Run(ctx context.Context) error {
	var out destination
	var tried time.Time
	defer func() {
		if out != nil {
			_ = out.Close() // what was written is written
		}
	}()
	write := func(l line) {
		var err error
		if out == nil {
			if time.Since(tried) < openAgain {
				s.dropped.Add(1)
				return
			}
			tried = time.Now()
			if out, err = s.open(); err != nil {
				out = nil
			}
		}
		if err == nil {
			err = out.write(l)
		}
		if err != nil && out != nil {
			_ = out.Close() // the error that counts is the write's
			out, tried = nil, time.Now()
		}
		if err != nil {
			s.dropped.Add(1)
		} else {
			s.written.Add(1)
		}
		s.note(err)
	}
	for {
		select {
		case l := <-s.lines:
			write(l)
			continue
		default:
		}
		select {
		case l := <-s.lines:
			write(l)
		case <-ctx.Done():
			for end := time.Now().Add(finalWithin); len(s.lines) > 0; {
				l := <-s.lines
				if time.Now().After(end) {
					s.dropped.Add(1)
					continue
				}
				write(l)
			}
			return nil
		}
	}
}

// note logs the begin and the end of a trouble.
func (s *Sink) note(err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	s.mu.Lock()
	was := s.err
	s.err = now
	s.mu.Unlock()
	switch {
	case was == "" && now != "":
		s.cfg.Log.Warn("lines cannot be written, and are dropped and counted",
			"about", s.cfg.What, "to", s.cfg.To, "error", err)
	case was != "" && now == "":
		s.cfg.Log.Info("lines are written again", "about", s.cfg.What, "to", s.cfg.To, "dropped", s.dropped.Load())
	}
}

// open opens where lines go.
func (s *Sink) open() (destination, error) {
	to := s.cfg.To
	if to == "syslog" {
		to = "unix:/dev/log"
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "-" // RFC 5424, section 6.2.4: unknown
	}
	head := header{facility: s.cfg.Facility, host: host, pid: os.Getpid()}
	switch scheme, rest, _ := strings.Cut(to, ":"); scheme {
	case "stderr":
		return pipe{s.cfg.Stderr}, nil
	case "unix":
		conn, err := net.DialTimeout("unixgram", rest, writeWithin)
		return &socket{conn, head.local}, err
	case "udp":
		conn, err := net.DialTimeout("udp", strings.TrimPrefix(rest, "//"), writeWithin)
		return &socket{conn, head.message}, err
	case "tcp":
		conn, err := net.DialTimeout("tcp", strings.TrimPrefix(rest, "//"), writeWithin)
		return &socket{conn, head.framed}, err
	}
	return openFile(to)
}

// header begins the messages to syslog.
type header struct {
	facility int
	host     string
	pid      int
}

// priority is RFC 5424, section 6.2.1.
func (h header) priority(l line) int { return h.facility*8 + l.severity }

const program = "appliance"

// local is what programs write to /dev/log: RFC 3164 without the host.
func (h header) local(l line) string {
	return fmt.Sprintf("<%d>%s %s[%d]: %s", h.priority(l), time.Now().Format(time.Stamp), program, h.pid, l.text)
}

// message is RFC 5424, section 6.
func (h header) message(l line) string {
	return fmt.Sprintf("<%d>1 %s %s %s %d %s - %s",
		h.priority(l), time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"), h.host, program, h.pid, l.kind, l.text)
}

// framed is a message after its length, RFC 6587, section 3.4.1.
func (h header) framed(l line) string {
	m := h.message(l)
	return fmt.Sprintf("%d %s", len(m), m)
}

// socket is a connection to a syslog.
type socket struct {
	net.Conn
	frame func(line) string
}

func (s *socket) write(l line) error {
	if err := s.SetWriteDeadline(time.Now().Add(writeWithin)); err != nil {
		return err
	}
	_, err := s.Write([]byte(s.frame(l)))
	return err
}

// pipe is a file that others write to as well, and that may be a pipe whose reader is slow.
type pipe struct{ *os.File }

func (p pipe) write(l line) error {
	// A pipe that is writable has room for PIPE_BUF bytes (pipe(7)), which is more than a line.
	fds := []unix.PollFd{{Fd: int32(p.Fd()), Events: unix.POLLOUT}}
	for {
		n, err := unix.Poll(fds, int(writeWithin.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return errors.New("its reader is too slow")
		}
		_, err = p.WriteString(l.text + "\n")
		return err
	}
}

// Close leaves the file open, which is not the Sink's alone.
func (p pipe) Close() error { return nil }

// logFile is a file that is opened anew when another one, or none, is at its path.
type logFile struct {
	*os.File
	path   string
	looked time.Time
}

func openFile(path string) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	return &logFile{File: f, path: path, looked: time.Now()}, err
}

func (f *logFile) write(l line) error {
	if time.Since(f.looked) >= lookAgain {
		f.looked = time.Now()
		mine, err := f.Stat()
		there, err2 := os.Stat(f.path)
		if err != nil || err2 != nil || !os.SameFile(mine, there) {
			next, err := openFile(f.path)
			if err != nil {
				return err
			}
			_ = f.File.Close() // it was moved away, and has what was written
			f.File = next.File
		}
	}
	_, err := f.WriteString(l.text + "\n")
	return err
}
