package balancer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"
)

// httpChecker sends a request over a new connection: a connection that is kept
// would not notice that the server takes no new ones. It does not follow
// redirects, because they may lead to another server.
type httpChecker struct {
	check               Check
	tls                 *tlsDialer // nil: in clear
	token               *fileCache[string]
	matches, mismatches *regexp.Regexp // nil: any body
}

func newHTTPChecker(c Check) (h *httpChecker, err error) {
	h = &httpChecker{check: c}
	if c.Type == CheckHTTPS {
		if h.tls, err = newTLSDialer(c.TLS); err != nil {
			return nil, err
		}
	}
	if c.BearerTokenFile != "" {
		if h.token, err = newFileCache(parseToken, c.BearerTokenFile); err != nil {
			return nil, err
		}
	}
	if c.Expect.Matches != "" {
		if h.matches, err = regexp.Compile(c.Expect.Matches); err != nil {
			return nil, err
		}
	}
	if c.Expect.Mismatches != "" {
		if h.mismatches, err = regexp.Compile(c.Expect.Mismatches); err != nil {
			return nil, err
		}
	}
	if _, err := h.request(context.Background(), "backend", c.Path); err != nil {
		return nil, fmt.Errorf("check path %q: %w", c.Path, err)
	}
	return h, nil
}

// maxBody is how many bytes of an answer's body are read: /readyz?verbose of an
// apiserver with many hooks has some 5 KiB. maxHead bounds the header.
const (
	maxBody = 64 << 10
	maxHead = 64 << 10
)

// Check implements Checker.
func (h *httpChecker) Check(ctx context.Context, b Backend) error {
	a, err := h.ask(ctx, b, h.check.Path)
	if err != nil {
		return err
	}
	verdict := h.judge(a)
	// A kube-apiserver that is about to stop says so in /readyz, while /livez
	// answers 200 until it ends.
	base, ready := strings.CutSuffix(h.check.Path, "/readyz")
	if verdict == nil || !ready || a.code < 500 {
		return verdict
	}
	if live, err := h.ask(ctx, b, base+"/livez"); err == nil && live.code == http.StatusOK {
		return fmt.Errorf("%s answers %s and %s answers 200: %w", h.check.Path, a.status, base+"/livez", ErrDraining)
	}
	return verdict
}

// answer is a server's answer to one request.
type answer struct {
	code   int
	status string // with its text
	goTo   string // Location
	body   []byte
}

// judge compares an answer with what is expected.
func (h *httpChecker) judge(a answer) error {
	c := h.check
	asked := c.Method + " " + c.Path
	switch {
	case c.Expect.expects(a.code):
	case h.tls == nil && a.code == http.StatusBadRequest && bytes.Contains(bytes.ToLower(a.body), []byte("https")):
		return &Mismatch{"wants TLS (" + firstLine(a.body) + ")", "check: {type: https}"}
	case a.code == http.StatusNotFound:
		return &Mismatch{fmt.Sprintf("answers %s to %s", a.status, asked),
			"check: {path: a page that it has}, or " + h.simplerCheck()}
	case a.code == http.StatusUnauthorized, a.code == http.StatusForbidden:
		return &Mismatch{fmt.Sprintf("answers %s to %s", a.status, asked),
			fmt.Sprintf("check: {expect: {status: [200, %d]}}, or say who asks by bearerTokenFile or tls.certFile", a.code)}
	case a.code >= 300 && a.code < 400:
		return &Mismatch{fmt.Sprintf("answers %s to %s and points to %q, and redirects are not followed",
			a.status, asked, a.goTo),
			fmt.Sprintf("check: {expect: {status: [200, %d]}}, or the right path", a.code)}
	case a.code == http.StatusMethodNotAllowed, a.code == http.StatusNotImplemented:
		return &Mismatch{fmt.Sprintf("answers %s to %s", a.status, asked), "check: {method: HEAD or GET or OPTIONS}"}
	default:
		return fmt.Errorf("answers %s to %s", a.status, asked)
	}
	if c.Expect.Contains != "" && !bytes.Contains(a.body, []byte(c.Expect.Contains)) {
		return fmt.Errorf("answers %q to %s, which does not contain %q", firstLine(a.body), asked, c.Expect.Contains)
	}
	if h.matches != nil && !h.matches.Match(a.body) {
		return fmt.Errorf("answers %q to %s, which does not match %q", firstLine(a.body), asked, c.Expect.Matches)
	}
	if c.Expect.Absent != "" && bytes.Contains(a.body, []byte(c.Expect.Absent)) {
		return fmt.Errorf("answers to %s what has %q in it, which must be absent", asked, c.Expect.Absent)
	}
	if h.mismatches != nil && h.mismatches.Match(a.body) {
		return fmt.Errorf("answers to %s what matches %q, which it must not", asked, c.Expect.Mismatches)
	}
	return nil
}

// simplerCheck is the check for a server that has no page to ask for.
func (h *httpChecker) simplerCheck() string {
	if h.tls != nil {
		return "check: {type: tls}"
	}
	return "check: {type: tcp}"
}

// firstLine is the beginning of a body, for people.
func firstLine(body []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(body), []byte("\n"))
	if len(line) > 80 {
		line = append(bytes.Clone(line[:80]), "..."...)
	}
	return string(line)
}

// ask sends one request and reads the answer.
func (h *httpChecker) ask(ctx context.Context, b Backend, path string) (answer, error) {
	conn, err := h.check.connect(ctx, b, h.tls)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req, err := h.request(ctx, h.check.At(b).String(), path)
	if err != nil {
		return answer{}, err
	}
	if err := req.Write(conn); err != nil {
		return answer{}, h.readError(ctx, nil, err)
	}
	return h.hear(ctx, conn, req)
}

// hear reads the answer to a request.
func (h *httpChecker) hear(ctx context.Context, conn io.Reader, req *http.Request) (answer, error) {
	in := bufio.NewReader(io.LimitReader(conn, maxHead+2*maxBody))
	resp, err := read(in, req)
	if err != nil {
		return answer{}, h.readError(ctx, in, err)
	}
	defer resp.Body.Close()
	a := answer{code: resp.StatusCode, status: resp.Status, goTo: resp.Header.Get("Location")}
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody)); err != nil {
		return answer{}, h.readError(ctx, nil, fmt.Errorf("breaks off in the middle of its answer: %w", err))
	}
	return a, nil
}

func (h *httpChecker) request(ctx context.Context, host, path string) (*http.Request, error) {
	// An IPv6 zone is for the connection only; it is not part of the URL's host.
	if i := strings.IndexByte(host, '%'); i >= 0 {
		host = host[:i] + host[strings.LastIndexByte(host, ']'):]
	}
	req, err := http.NewRequestWithContext(ctx, h.check.Method, h.check.Type+"://"+host+path, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	req.Header.Set("User-Agent", "appliance")
	for _, header := range h.check.Headers {
		req.Header.Add(header.Name, header.Value)
	}
	if h.check.Host != "" {
		req.Host = h.check.Host
	}
	if h.token != nil {
		req.Header.Set("Authorization", "Bearer "+h.token.get())
	}
	return req, nil
}

// read reads an answer and skips interim ones (RFC 9110, section 15.2).
func read(in *bufio.Reader, req *http.Request) (*http.Response, error) {
	for range 5 {
		resp, err := http.ReadResponse(in, req)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, errors.New("answers again and again that an answer will come")
}

// readError says why no whole answer came. It ends with what to write where the
// check may be the wrong one.
func (h *httpChecker) readError(ctx context.Context, in *bufio.Reader, err error) error {
	var op *net.OpError
	switch {
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("takes the connection, but does not answer %s %s in time", h.check.Method, h.check.Path)
	case h.tls != nil && errors.As(err, &op) && op.Op == "remote error":
		return &Mismatch{"refuses the TLS connection (" + op.Err.Error() + ")",
			"check: {tls: {certFile: ..., keyFile: ...}} if it wants a client certificate, or check: {type: tcp}"}
	case errors.Is(err, io.ErrUnexpectedEOF) && in != nil, errors.Is(err, io.EOF):
		return errors.New("closes the connection without an answer")
	case strings.Contains(err.Error(), "malformed HTTP"):
		// A record of TLS begins with its type, 21 for an alert (RFC 8446, section 5.1).
		if strings.Contains(err.Error(), `"\x15\x03`) {
			return &Mismatch{"answers in TLS", "check: {type: https}"}
		}
		return &Mismatch{"does not answer in HTTP", h.simplerCheck()}
	case in != nil:
		return fmt.Errorf("answers with a broken header: %w", err)
	}
	return err
}
