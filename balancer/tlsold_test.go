package balancer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"testing"
	"time"
)

// TestUnverifiedChecksJudgeNothing: a check that does not verify takes servers as old as Go can speak to, and one that
// verifies does not.
func TestUnverifiedChecksJudgeNothing(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	certificate := func(key any, extra ...pkix.Extension) tls.Certificate {
		public := any(&ecKey.PublicKey)
		if key == any(rsaKey) {
			public = &rsaKey.PublicKey
		}
		of := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), ExtraExtensions: extra}
		der, err := x509.CreateCertificate(rand.Reader, of, of, public, key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	// A name that is not ASCII, which Go does not read.
	names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("ä")}})
	if err != nil {
		t.Fatal(err)
	}
	odd := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: names}
	for _, tt := range []struct {
		name   string
		server *tls.Config
	}{
		{"TLS 1.0", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10,
			Certificates: []tls.Certificate{certificate(ecKey)}}},
		{"RSA key exchange", &tls.Config{MaxVersion: tls.VersionTLS12,
			CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}, Certificates: []tls.Certificate{certificate(rsaKey)}}},
		{"a name that cannot be read", &tls.Config{Certificates: []tls.Certificate{certificate(ecKey, odd)}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := tls.Listen("tcp", "127.0.0.1:0", tt.server)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go func(conn net.Conn) {
						defer conn.Close()
						_ = conn.(*tls.Conn).HandshakeContext(t.Context()) // the client says what is wrong
					}(conn)
				}
			}()
			at := Backend{Addr: l.Addr().(*net.TCPAddr).AddrPort()}
			for _, verify := range []bool{false, true} {
				checker, err := newTLSChecker(Check{TLS: TLSOptions{Verify: verify}})
				if err != nil {
					t.Fatal(err)
				}
				if err := checker.Check(t.Context(), at); (err == nil) == verify {
					t.Errorf("verify %v: %v", verify, err)
				}
			}
		})
	}
}
