package forward

// verdict is what the first bytes of a client are.
type verdict uint8

const (
	undecided verdict = iota // more bytes are needed
	isTLS
	notTLS
)

// helloSize is how many bytes decide whether a client begins with TLS.
const helloSize = 11

// clientHello reports whether b begins with a TLS ClientHello, whatever follows: a
// record (RFC 8446 section 5.1) of type handshake (22) and version 3.x, that begins a
// handshake message (section 4) of type client_hello (1) with a legacy_version of 3.x.
func clientHello(b []byte) verdict {
	for i := range min(len(b), helloSize) {
		ok := true
		switch i {
		case 0:
			ok = b[i] == 22
		case 1, 9:
			ok = b[i] == 3
		case 2, 10:
			ok = b[i] <= 4
		case 4:
			// A record has at most 2^14 bytes. One of less than four does not even
			// hold the length of its message.
			n := int(b[3])<<8 | int(b[4])
			ok = n >= 4 && n <= 1<<14
		case 5:
			ok = b[i] == 1
		case 8:
			// No ClientHello is shorter than its fixed fields (section 4.1.2)
			// or longer than 128 KiB.
			n := int(b[6])<<16 | int(b[7])<<8 | int(b[8])
			ok = n >= 2+32+1+2+2+1+1 && n < 1<<17
		}
		if !ok {
			return notTLS
		}
	}
	if len(b) < helloSize {
		return undecided
	}
	return isTLS
}
