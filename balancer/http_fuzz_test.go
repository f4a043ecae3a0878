package balancer

import (
	"bytes"
	"context"
	"testing"
)

// FuzzHTTPAnswer: nothing that a server answers to a check makes it panic, be it for a page, a text or a status.
func FuzzHTTPAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server"))
	f.Add([]byte("\x15\x03\x01\x00\x02\x02\x46"))
	var checks []*httpChecker
	for _, c := range []Check{
		{Type: CheckHTTP, Method: "GET", Path: "/readyz"},
		{Type: CheckHTTP, Method: "HEAD", Path: "/", Expect: Expect{Contains: "ok"}},
		{Type: CheckHTTP, Method: "OPTIONS", Path: "/x", Expect: Expect{Matches: "^(a|b)+$"}},
	} {
		h, err := newHTTPChecker(c)
		if err != nil {
			f.Fatal(err)
		}
		checks = append(checks, h)
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		for _, h := range checks {
			req, err := h.request(context.Background(), "192.0.2.1:80", h.check.Path)
			if err != nil {
				t.Fatal(err)
			}
			a, err := h.hear(context.Background(), bytes.NewReader(said), req)
			if len(a.body) > maxBody {
				t.Errorf("%d bytes of a body are kept", len(a.body))
			}
			if err == nil {
				_ = h.judge(a)
			}
		}
	})
}
