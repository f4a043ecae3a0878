package peerport

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"appliance/raft/auth"
)

// spoken is a connection on which everything has been said.
type spoken struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (s *spoken) Read(b []byte) (int, error)     { return s.in.Read(b) }
func (s *spoken) Write(b []byte) (int, error)    { return s.out.Write(b) }
func (*spoken) Close() error                     { return nil }
func (*spoken) SetReadDeadline(time.Time) error  { return nil }
func (*spoken) SetWriteDeadline(time.Time) error { return nil }

// FuzzLines: whatever comes on a control connection, each line that is JSON is answered, and the first other one ends the
// connection.
func FuzzLines(f *testing.F) {
	f.Add([]byte(`{"op":"hello"}`+"\n{}\n"), true)
	f.Add([]byte("{\"op\":\n"), false)
	f.Add([]byte("\n"), false)
	f.Fuzz(func(t *testing.T, sent []byte, peer bool) {
		who := auth.Identity{Role: auth.Worker}
		if peer {
			who.Role = auth.Peer
		}
		c := &spoken{in: bytes.NewReader(sent)}
		asked := 0
		AnswerLines(context.Background(), c, who, func(_ context.Context, q struct {
			Op string `json:"op"`
		}) string {
			asked++
			return q.Op
		})
		n, lines := bytes.Count(c.out.Bytes(), []byte("\n")), bytes.Count(sent, []byte("\n"))
		if n != asked || n > lines {
			t.Errorf("%d questions in %d lines got %d answers", asked, lines, n)
		}
	})
}
