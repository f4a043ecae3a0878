package bgp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/jwhited/corebgp"
)

// Types of messages and their sizes (RFC 4271, section 4.1).
const (
	typeOpen         = 1
	typeUpdate       = 2
	typeNotification = 3

	headerSize = 19
	maxMessage = 4096
)

// Subcodes of Cease (RFC 4486, section 4; RFC 9384, section 3).
const (
	ceaseShutdown = 2
	ceaseBFDDown  = 10
)

// writeWithin bounds how long one message may take to leave: a router that reads nothing for so long is dead. It is the
// least hold time that RFC 4271 allows.
const writeWithin = 3 * time.Second

// A conn is the connection of one session. It knows why it ended, by the messages that pass.
type conn struct {
	net.Conn
	ended func(*conn) // is told of the end
	once  sync.Once

	reading []byte // what is left of the message that was read last; the reader's alone

	mu    sync.Mutex
	cause string // empty: the connection ended without a word
	hold  time.Duration
	sent  uint64 // messages
	rcvd  uint64
}

func newConn(c net.Conn, ended func(*conn)) *conn { return &conn{Conn: c, ended: ended} }

// errHoldTime is of a router that wants no keepalives: nobody would notice its end (RFC 4271, section 4.2, allows to
// refuse any hold time).
var errHoldTime = errors.New("bgp: the router proposes a hold time of zero")

// Read implements net.Conn. It takes whole messages from the connection.
func (c *conn) Read(p []byte) (int, error) {
	if len(c.reading) == 0 {
		message, err := readMessage(c.Conn)
		if err != nil {
			return 0, err
		}
		if err := c.received(message); err != nil {
			return 0, err
		}
		c.reading = message
	}
	n := copy(p, c.reading)
	c.reading = c.reading[n:]
	return n, nil
}

// readMessage reads one message. Of one whose length is impossible it returns the header, for which the session ends.
func readMessage(r io.Reader) ([]byte, error) {
	message := make([]byte, headerSize, maxMessage)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(message[16:]))
	if size < headerSize || size > maxMessage {
		return message, nil
	}
	message = message[:size]
	_, err := io.ReadFull(r, message[headerSize:])
	return message, err
}

// received notes what a message says.
func (c *conn) received(message []byte) error {
	body := message[headerSize:]
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rcvd++
	switch message[18] {
	case typeOpen:
		if len(body) < 5 {
			return nil // corebgp refuses it
		}
		c.hold = time.Duration(binary.BigEndian.Uint16(body[3:])) * time.Second
		if c.hold == 0 {
			n := corebgp.Notification{
				Code: corebgp.NOTIF_CODE_OPEN_MESSAGE_ERR, Subcode: corebgp.NOTIF_SUBCODE_UNACCEPTABLE_HOLD_TIME,
			}
			c.noteCause("the router proposes no hold time, so that its end would not be noticed; set one there, such as 9 s")
			c.notify(n.Code, n.Subcode)
			return errHoldTime
		}
	case typeNotification:
		if len(body) >= 2 {
			c.noteCause("the router ended the session: " + describe(body[0], body[1], body[2:]))
		}
	}
	return nil
}

// noteCause notes the first cause, which led to the others. The caller holds mu.
func (c *conn) noteCause(cause string) {
	if c.cause == "" {
		c.cause = cause
	}
}

// notify sends a NOTIFICATION message without data.
func (c *conn) notify(code, subcode uint8) {
	message := make([]byte, headerSize+2)
	for i := range 16 {
		message[i] = 0xff
	}
	binary.BigEndian.PutUint16(message[16:], uint16(len(message)))
	message[18], message[19], message[20] = typeNotification, code, subcode
	// The connection ends anyway.
	_ = c.Conn.SetWriteDeadline(time.Now().Add(writeWithin))
	_, _ = c.Conn.Write(message)
}

// Write implements net.Conn. corebgp writes each message at once.
func (c *conn) Write(message []byte) (int, error) {
	if len(message) >= headerSize+2 && message[18] == typeNotification {
		code, subcode := message[19], message[20]
		if code == corebgp.NOTIF_CODE_CEASE && subcode == 0 {
			subcode = ceaseShutdown // corebgp gives no reason; it ceases only when this node ends the session on purpose
			message[20] = subcode
		}
		c.mu.Lock()
		c.noteCause("this node ended the session: " + describe(code, subcode, nil))
		c.mu.Unlock()
	}
	if err := c.Conn.SetWriteDeadline(time.Now().Add(writeWithin)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(message)
	if err == nil {
		c.mu.Lock()
		c.sent++
		c.mu.Unlock()
	}
	return n, err
}

// end ends the session for a cause of this node, and says so to the router.
func (c *conn) end(subcode uint8, cause string) {
	c.mu.Lock()
	c.noteCause(cause)
	c.mu.Unlock()
	c.notify(corebgp.NOTIF_CODE_CEASE, subcode)
	_ = c.Close()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.Conn.Close()
		c.ended(c)
	})
	return err
}

func (c *conn) why() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// describe is a NOTIFICATION message for people (RFC 4271, section 4.5).
func describe(code, subcode uint8, data []byte) string {
	text := fmt.Sprintf("code %d, subcode %d", code, subcode)
	switch {
	case code == corebgp.NOTIF_CODE_OPEN_MESSAGE_ERR && subcode == corebgp.NOTIF_SUBCODE_BAD_PEER_AS:
		text = "the AS numbers do not fit; compare as on both sides"
	case code == corebgp.NOTIF_CODE_OPEN_MESSAGE_ERR && subcode == corebgp.NOTIF_SUBCODE_BAD_BGP_ID:
		text = "both have the same BGP identifier; give one of them another"
	case code == corebgp.NOTIF_CODE_OPEN_MESSAGE_ERR && subcode == corebgp.NOTIF_SUBCODE_UNSUPPORTED_CAPABILITY:
		text = "a capability is missing, such as AS numbers of four octets"
	case code == corebgp.NOTIF_CODE_HOLD_TIMER_EXPIRED:
		text = "nothing was heard for the hold time"
	case code == corebgp.NOTIF_CODE_CEASE:
		text = ceaseText(subcode)
		// RFC 9003, section 2: an administrator may say why, in UTF-8.
		if len(data) > 1 && int(data[0]) <= len(data)-1 && (subcode == ceaseShutdown || subcode == 4) {
			text += fmt.Sprintf(" (%q)", data[1:1+data[0]])
		}
	}
	return text
}

// ceaseText is a subcode of Cease for people (RFC 4486, section 4).
func ceaseText(subcode uint8) string {
	texts := map[uint8]string{
		1: "too many routes", ceaseShutdown: "shut down by its administrator", 3: "it was removed from the configuration",
		4: "reset by its administrator", 5: "the connection was rejected", 6: "its configuration has changed",
		7: "another connection of both was there", 8: "it is out of resources", 9: "it restarts",
		ceaseBFDDown: "BFD says that the other side is gone",
	}
	if text, ok := texts[subcode]; ok {
		return text
	}
	return fmt.Sprintf("cease, subcode %d", subcode)
}
