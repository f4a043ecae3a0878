package peerport

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"time"

	"appliance/raft/auth"
)

// The control protocol: one JSON question per line, one JSON answer per line, in turn. Unknown fields are
// ignored on both sides so that versions may differ.

// What a question or answer may have in bytes: settings of a large group are some 10 KiB. A worker asks for
// what has changed since, and no more.
const (
	maxLine         = 1 << 20
	maxLineOfWorker = 16 << 10
)

// controlIdle ends a control connection without questions; a peer asks every second.
const controlIdle = 30 * time.Second

// AnswerLines answers the questions of who on conn until it ends.
func AnswerLines[Q, A any](ctx context.Context, conn net.Conn, who auth.Identity, answer func(context.Context, Q) A) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	lines, most := bufio.NewReader(conn), maxLine
	if who.Role != auth.Peer {
		most = maxLineOfWorker
	}
	for {
		conn.SetReadDeadline(time.Now().Add(controlIdle))
		var q Q
		if err := readLine(lines, most, &q); err != nil {
			return
		}
		conn.SetWriteDeadline(time.Now().Add(controlIdle))
		if err := WriteLine(conn, answer(ctx, q)); err != nil {
			return
		}
	}
}

// ReadLine reads one line of JSON.
func ReadLine(r *bufio.Reader, into any) error { return readLine(r, maxLine, into) }

func readLine(r *bufio.Reader, most int, into any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > most {
			return errors.New("control message too long")
		}
		line = append(line, part...)
		if err == nil {
			return json.Unmarshal(line, into)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// WriteLine writes v as one line of JSON.
func WriteLine(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}
