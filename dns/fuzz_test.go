package dns

import (
	"bytes"
	"net"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// said is a connection to a server that has said something.
type said struct {
	net.Conn
	bytes.Reader
}

func (s *said) Read(b []byte) (int, error) { return s.Reader.Read(b) }
func (*said) Close() error                 { return nil }

// FuzzRead: whatever a server of the DNS answers, by datagrams or a stream in pieces, reading along does not panic, and
// finds the life of a record that is in it.
func FuzzRead(f *testing.F) {
	name := dnsmessage.MustNewName("api.example.")
	good := dnsmessage.Message{
		Header:    dnsmessage.Header{Response: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		Answers: []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 30},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}},
		}},
	}
	packed, err := good.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed, false, 512)
	f.Add(append([]byte{0, byte(len(packed))}, packed...), true, 3)
	f.Fuzz(func(t *testing.T, answer []byte, stream bool, piece int) {
		l := &life{}
		s := &said{}
		s.Reader.Reset(answer)
		w := &watched{Conn: s, life: l, mute: func() {}, stream: stream}
		for buf := make([]byte, min(max(piece, 1), 4096)); ; {
			if _, err := w.Read(buf); err != nil {
				break
			}
		}
		w.Close()
		ttl := l.shortest()
		if ttl < 0 || ttl > (1<<32-1)*time.Second {
			t.Errorf("%x: a life of %v", answer, ttl)
		}
		if bytes.Equal(answer, packed) && !stream && piece >= len(packed) && ttl != 30*time.Second {
			t.Errorf("the record's life is %v", ttl)
		}
	})
}
