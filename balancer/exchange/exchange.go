package exchange

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
)

// MaxReceived is how many bytes may arrive between two sends: haproxy's buffer, and far above any greeting.
const MaxReceived = 16 << 10

// A TalkStep either sends, or waits for what has to come. Exactly one of its fields is set. A step that waits looks at
// everything that has arrived since the last send, as haproxy's tcp-check does.
type TalkStep struct {
	// Send is what is sent.
	Send string
	// Expect has to be in what arrives.
	Expect string
	// Matches is a regular expression (RE2) that what arrives has to match.
	Matches string
	// Absent must not be in what arrives, and Mismatches is a regular expression that it must not match, until the server
	// has closed the connection, or MaxReceived bytes are there: haproxy's expect with an exclamation mark. A server that
	// sends nothing at all does not pass.
	Absent, Mismatches string
}

// A Script is a conversation that may be held many times, also concurrently.
type Script struct{ steps []step }

// step is a TalkStep that is ready. judge, if not nil, looks at what has arrived since the last send: more bytes are
// needed while it is not done.
type step struct {
	send  []byte
	judge func(got []byte) (done bool, err error)
	waits string // for what, for people
	// untilEnd has the server's end of the connection, and a full buffer, end the step well.
	untilEnd bool
}

// An OtherProtocol is the answer of a server that speaks something else.
type OtherProtocol struct{ Saw string }

func (f *OtherProtocol) Error() string { return f.Saw }

// New is the script of steps. The error says which step is none.
func New(steps []TalkStep) (*Script, error) {
	s := new(Script)
	for i, one := range steps {
		said := 0
		for _, text := range []string{one.Send, one.Expect, one.Matches, one.Absent, one.Mismatches} {
			if text != "" {
				said++
			}
		}
		if said != 1 {
			return nil, fmt.Errorf("step %d: write what is sent or what is expected, one of the two", i+1)
		}
		text, pattern := []byte(one.Expect+one.Absent), one.Matches+one.Mismatches
		has := func(got []byte) bool { return bytes.Contains(got, text) }
		what := fmt.Sprintf("%q", text)
		if pattern != "" {
			re, err := regexp.Compile(pattern)
			if err != nil {
				return nil, fmt.Errorf("step %d: %w; write a regular expression of RE2", i+1, err)
			}
			has, what = re.Match, fmt.Sprintf("what matches %q", pattern)
		}
		switch {
		case one.Send != "":
			s.steps = append(s.steps, sends(one.Send))
		case one.Absent != "" || one.Mismatches != "":
			s.steps = append(s.steps, step{waits: "the end of the connection", untilEnd: true,
				judge: func(got []byte) (bool, error) {
					if has(got) {
						return false, fmt.Errorf("answers %s, which has %s", quote(got), what)
					}
					return false, nil
				}})
		default:
			s.steps = append(s.steps, step{waits: what, judge: func(got []byte) (bool, error) { return has(got), nil }})
		}
	}
	return s, nil
}

func sends(text string) step { return step{send: []byte(text)} }

// Run holds the conversation. The error says what came in place of what was expected.
func (s *Script) Run(conn io.ReadWriter) error {
	var got []byte
	buf := make([]byte, 4096)
	for _, one := range s.steps {
		if one.judge == nil {
			got = got[:0]
			if _, err := conn.Write(one.send); err != nil {
				return err
			}
			continue
		}
		for {
			done, err := one.judge(got)
			if err != nil {
				return err
			}
			if done {
				break
			}
			if len(got) >= MaxReceived && one.untilEnd {
				break
			}
			if len(got) >= MaxReceived {
				return fmt.Errorf("answers %s, and %d bytes without %s", quote(got), MaxReceived, one.waits)
			}
			n, err := conn.Read(buf[:min(len(buf), MaxReceived-len(got))])
			got = append(got, buf[:n]...)
			if n > 0 {
				continue
			}
			if errors.Is(err, io.EOF) && one.untilEnd {
				if len(got) == 0 {
					return errors.New("closes the connection without a word")
				}
				break
			}
			if err != nil {
				return unanswered(got, one.waits, err)
			}
		}
	}
	return nil
}

// unanswered says that a connection ended, or was silent, before what was expected came.
func unanswered(got []byte, waits string, err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && len(got) > 0:
		return fmt.Errorf("answers %s, and not %s in time", quote(got), waits)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("takes the connection, but does not send %s in time", waits)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("breaks off before %s: %w", waits, err)
	case len(got) == 0:
		return fmt.Errorf("closes the connection without %s", waits)
	}
	return fmt.Errorf("answers %s and closes the connection, without %s", quote(got), waits)
}

// quote is the beginning of an answer, for people.
func quote(got []byte) string {
	const most = 80
	if len(got) > most {
		return fmt.Sprintf("%q...", got[:most])
	}
	return fmt.Sprintf("%q", got)
}
