package exchange

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Redis asks for a sign of life. The server answers +PONG (https://redis.io/docs/latest/commands/ping).
func Redis() *Script {
	return &Script{[]step{
		sends("*1\r\n$4\r\nPING\r\n"),
		{waits: "+PONG", judge: func(got []byte) (bool, error) {
			line, ok := firstLine(got)
			switch {
			case len(got) > 0 && got[0] != '+' && got[0] != '-':
				return false, &OtherProtocol{"does not speak the protocol of Redis: " + quote(got)}
			case !ok:
				return false, nil
			case line != "+PONG":
				return false, fmt.Errorf("answers %q to PING", line)
			}
			return true, nil
		}},
	}}
}

// SMTP waits for the greeting, says hello, such as HELO localhost, and takes its leave (RFC 5321, sections 4.1.1.1,
// 4.1.1.10 and 4.2). Every answer has to be positive, 2yz.
func SMTP(hello string) *Script {
	return &Script{[]step{
		replies("the greeting"),
		sends(hello + "\r\n"), replies("the answer to " + strings.Fields(hello + " HELO")[0]),
		sends("QUIT\r\n"), replies("the answer to QUIT"),
	}}
}

// replies waits for a whole positive reply of SMTP: lines with a code, of which all but the last have - behind it
// (RFC 5321, section 4.2.1).
func replies(what string) step {
	return step{waits: what, judge: func(got []byte) (bool, error) {
		rest := got
		for {
			line, ok := firstLine(rest)
			if len(rest) >= 3 {
				if _, err := strconv.ParseUint(string(rest[:3]), 10, 16); err != nil {
					return false, &OtherProtocol{"does not speak SMTP: " + quote(got)}
				}
				if rest[0] != '2' && ok {
					return false, fmt.Errorf("answers %q", line)
				}
			}
			switch {
			case !ok:
				return false, nil
			case len(line) < 4 || line[3] != '-':
				return true, nil
			}
			rest = rest[bytes.IndexByte(rest, '\n')+1:]
		}
	}}
}

// firstLine is got up to the end of its first line, if there is one.
func firstLine(got []byte) (line string, ok bool) {
	before, _, ok := bytes.Cut(got, []byte("\n"))
	return strings.TrimSuffix(string(before), "\r"), ok
}

// MySQL waits for the server's handshake. With a user it logs in without a password and leaves; otherwise it leaves at
// once, which a server may count as an error of this host (max_connect_errors). A refused login is an error
// (https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase.html).
func MySQL(user string) *Script {
	s := &Script{[]step{{waits: "the handshake of MySQL", judge: packetOf(0)}}}
	if user != "" {
		s.steps = append(s.steps, sends(mysqlLogin(user)), step{waits: "the answer to the login", judge: packetOf(2)})
	}
	return s
}

// mysqlLogin is a HandshakeResponse41 with the capabilities CLIENT_PROTOCOL_41 and CLIENT_SECURE_CONNECTION, packets of
// up to 16 MiB, the character set utf8 (33) and no password; and COM_QUIT behind it.
func mysqlLogin(user string) string {
	b := binary.LittleEndian.AppendUint32(nil, 1<<9|1<<15)
	b = binary.LittleEndian.AppendUint32(b, 1<<24|1<<15)
	b = append(b, 33)
	b = append(b, make([]byte, 23)...)
	b = append(append(b, user...), 0, 0)
	n := len(b)
	return string([]byte{byte(n), byte(n >> 8), byte(n >> 16), 1}) + string(b) + "\x01\x00\x00\x00\x01"
}

// packetOf waits for a packet of MySQL with that sequence number, and refuses one that is an error: its payload begins
// with 0xff, a code of two bytes, and, after the login, # and a state of five bytes. A handshake begins with the
// protocol's version, 9 or 10.
func packetOf(sequence byte) func([]byte) (bool, error) {
	return func(got []byte) (bool, error) {
		if len(got) < 5 {
			return false, nil
		}
		n := int(got[0]) | int(got[1])<<8 | int(got[2])<<16
		kind := got[4]
		if got[3] != sequence || n == 0 || n > MaxReceived-4 || sequence == 0 && kind != 0xff && kind != 9 && kind != 10 {
			return false, &OtherProtocol{"does not speak the protocol of MySQL: " + quote(got)}
		}
		if len(got) < 4+n {
			return false, nil
		}
		if kind != 0xff {
			return true, nil
		}
		text := got[5 : 4+n]
		if len(text) < 2 {
			return false, errors.New("answers with an error")
		}
		code := binary.LittleEndian.Uint16(text)
		if text = text[2:]; len(text) >= 6 && text[0] == '#' {
			text = text[6:]
		}
		return false, fmt.Errorf("answers with error %d: %s", code, quote(text))
	}
}

// PostgreSQL begins a session as user and leaves when the server asks who that is, or lets it in. An error is one here:
// a server that starts or has too many clients says so in its first answer
// (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP).
func PostgreSQL(user string) *Script {
	body := binary.BigEndian.AppendUint32(nil, 3<<16) // version 3.0
	body = append(body, "user\x00"+user+"\x00\x00"...)
	return &Script{[]step{
		sends(string(binary.BigEndian.AppendUint32(nil, uint32(4+len(body)))) + string(body)),
		{waits: "the question who asks", judge: postgresAnswer},
	}}
}

// postgresAnswer judges the first message: R is a request for authentication, E an error with fields, of which M is the
// text (https://www.postgresql.org/docs/current/protocol-message-formats.html).
func postgresAnswer(got []byte) (bool, error) {
	if len(got) > 0 && got[0] != 'R' && got[0] != 'E' {
		return false, &OtherProtocol{"does not speak the protocol of PostgreSQL: " + quote(got)}
	}
	if len(got) < 5 {
		return false, nil
	}
	n := int(binary.BigEndian.Uint32(got[1:]))
	switch {
	case n < 8 || n > MaxReceived-1:
		return false, &OtherProtocol{"does not speak the protocol of PostgreSQL: " + quote(got)}
	case len(got) < 1+n:
		return false, nil
	case got[0] == 'R':
		return true, nil
	}
	for field := range bytes.SplitSeq(got[5:1+n], []byte{0}) {
		if len(field) > 0 && field[0] == 'M' {
			return false, fmt.Errorf("answers with an error: %s", quote(field[1:]))
		}
	}
	return false, errors.New("answers with an error")
}

// LDAP binds without a name, and leaves (RFC 4511, sections 4.2 and 4.3). Any result but success is an error.
func LDAP() *Script {
	return &Script{[]step{
		// LDAPMessage 1, bindRequest: version 3, an empty name, simple authentication without a password.
		sends("\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00"),
		{waits: "the answer to the bind", judge: bindAnswer},
		sends("\x30\x05\x02\x01\x02\x42\x00"), // LDAPMessage 2, unbindRequest
	}}
}

// bindAnswer judges an LDAPMessage with a bindResponse, [APPLICATION 1], whose first element is the result, an
// ENUMERATED. Lengths are BER's (RFC 4511, section 5.1).
func bindAnswer(got []byte) (bool, error) {
	foreign := &OtherProtocol{"does not speak LDAP: " + quote(got)}
	message, _, whole, ok := element(got, 0x30)
	if !ok {
		return false, foreign
	}
	if !whole {
		return false, nil
	}
	_, message, id, ok := element(message, 0x02) // messageID
	response, _, whole, ok2 := element(message, 0x61)
	result, _, whole2, ok3 := element(response, 0x0a)
	if !id || !whole || !whole2 || !ok || !ok2 || !ok3 || len(result) != 1 {
		return false, foreign
	}
	if result[0] != 0 {
		return false, fmt.Errorf("answers the bind without a name with result %d of RFC 4511, section 4.1.9", result[0])
	}
	return true, nil
}

// element is the content of the BER element with that tag at the beginning of b, and what is behind it. It is not ok if
// b begins with another, or with a length that no answer has, and not whole while bytes are missing.
func element(b []byte, tag byte) (content, rest []byte, whole, ok bool) {
	if len(b) > 0 && b[0] != tag {
		return nil, nil, false, false
	}
	if len(b) < 2 {
		return nil, nil, false, true
	}
	n, head := int(b[1]), 2
	if b[1] >= 0x80 { // the length's own length, and the length
		more := int(b[1] & 0x7f)
		if more < 1 || more > 4 {
			return nil, nil, false, false
		}
		if len(b) < 2+more {
			return nil, nil, false, true
		}
		n, head = 0, 2+more
		for _, c := range b[2:head] {
			n = n<<8 | int(c)
		}
	}
	if n > MaxReceived-head {
		return nil, nil, false, false
	}
	if len(b) < head+n {
		return nil, nil, false, true
	}
	return b[head : head+n], b[head+n:], true, true
}
