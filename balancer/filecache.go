package balancer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// fileCache is the parsed content of files such as certificates and tokens. It
// reads them again whenever one of them changes. A change that cannot be read or
// parsed leaves the previous content: a half-written file is no reason to call
// servers dead.
type fileCache[T any] struct {
	paths []string
	parse func(contents [][]byte) (T, error)

	mu    sync.Mutex
	seen  []stamp
	value T
}

// stamp identifies one version of a file, also behind a symbolic link that was
// replaced.
type stamp struct {
	info  os.FileInfo
	mtime time.Time
	size  int64
}

func (s stamp) same(o stamp) bool {
	return s.mtime.Equal(o.mtime) && s.size == o.size && os.SameFile(s.info, o.info)
}

// newFileCache reads the files for the first time, which must succeed.
func newFileCache[T any](parse func(contents [][]byte) (T, error), paths ...string) (*fileCache[T], error) {
	f := &fileCache[T]{paths: paths, parse: parse}
	if err := f.read(); err != nil {
		return nil, err
	}
	return f, nil
}

// get is the newest content that could be read.
func (f *fileCache[T]) get() T {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.read()
	return f.value
}

func (f *fileCache[T]) read() error {
	var seen []stamp
	same := f.seen != nil
	for i, path := range f.paths {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("%w; correct the path, or make the file", err)
		}
		if !info.Mode().IsRegular() { // a pipe would hold up whoever checks, and a device has no end
			return fmt.Errorf("%s is not a regular file; give the path of one", path)
		}
		s := stamp{info, info.ModTime(), info.Size()}
		same = same && s.same(f.seen[i])
		seen = append(seen, s)
	}
	if same {
		return nil
	}
	var contents [][]byte
	for _, path := range f.paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%w; make the file readable for this program", err)
		}
		contents = append(contents, data)
	}
	value, err := f.parse(contents)
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(f.paths, ", "), err)
	}
	f.seen, f.value = seen, value
	return nil
}

// parseCA reads the certificates of one PEM file.
func parseCA(contents [][]byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(contents[0]) {
		return nil, errors.New("has no certificate in PEM; give the CA's certificate")
	}
	return pool, nil
}

// parsePair reads a certificate file and its key file.
func parsePair(contents [][]byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return nil, fmt.Errorf("%w; give a certificate and its own key, both in PEM", err)
	}
	return &pair, nil
}

// parseToken reads a bearer token (RFC 6750, section 2.1).
func parseToken(contents [][]byte) (string, error) {
	token := strings.TrimSpace(string(contents[0]))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("is no bearer token; the file has to hold one and nothing else")
	}
	return token, nil
}
