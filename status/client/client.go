package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"appliance/status"
	"appliance/status/journal"
)

// A Client asks the appliance that listens on a unix socket.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a Client for the socket at path. It does not dial yet.
func New(path string) *Client {
	return &Client{
		socket: path,
		http: &http.Client{
			Timeout: 30 * time.Second,
			Transport: &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					var d net.Dialer
					return d.DialContext(ctx, "unix", path)
				},
				DisableKeepAlives: true,
			},
		},
	}
}

// Snapshot fetches the appliance's snapshot.
func (c *Client) Snapshot(ctx context.Context) (status.Snapshot, error) {
	var s status.Snapshot
	body, err := c.Do(ctx, http.MethodGet, "/status.json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, fmt.Errorf("the appliance on %s did not answer with a snapshot: %w; "+
			"are client and server of one version?", c.socket, err)
	}
	return s, nil
}

// Connections fetches how many connections of clients elsewhere the appliance's host serves.
func (c *Client) Connections(ctx context.Context) (int, error) {
	body, err := c.Do(ctx, http.MethodGet, "/connections")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil {
		return 0, fmt.Errorf("the appliance on %s did not answer with a number of connections: %w; "+
			"are client and server of one version?", c.socket, err)
	}
	return n, nil
}

// Events fetches the events that the appliance has in memory, the oldest first.
func (c *Client) Events(ctx context.Context) ([]status.Event, error) {
	body, err := c.Do(ctx, http.MethodGet, "/events.json")
	if err != nil {
		return nil, err
	}
	var events []status.Event
	if err := json.Unmarshal(body, &events); err != nil {
		return nil, fmt.Errorf("the appliance on %s did not answer with events: %w; "+
			"are client and server of one version?", c.socket, err)
	}
	return events, nil
}

// reconnectAfter is the pause before a stream that ended is requested again.
const reconnectAfter = time.Second

// Follow calls show with each event after since, until ctx ends or show fails. It reconnects to an appliance that
// restarts.
func (c *Client) Follow(ctx context.Context, since uint64, show func(status.Event) error) error {
	for {
		err := c.follow(ctx, &since, show)
		var shown showError
		if errors.As(err, &shown) {
			return shown.error
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reconnectAfter):
		}
	}
}

// A showError is an error of show, not of the stream.
type showError struct{ error }

func (c *Client) follow(ctx context.Context, since *uint64, show func(status.Event) error) error {
	url := "http://appliance/events?since=" + strconv.FormatUint(*since, 10)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	endless := http.Client{Transport: c.http.Transport} // without a time limit
	resp, err := endless.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 2*journal.MaxEvent)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e status.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return err
		}
		if err := show(e); err != nil {
			return showError{err}
		}
		*since = e.Seq
	}
	return lines.Err()
}

// ErrNotRunning means that nobody listens on the socket.
var ErrNotRunning = errors.New("no appliance listens")

// Do sends a request without a body and returns the body of the answer. An answer other than 2xx is an error with the
// body as its text.
func (c *Client) Do(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://appliance"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w on %s; is it running, and with this --socket?", ErrNotRunning, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("no permission to open %s; run this as root", c.socket)
	case err != nil:
		return nil, fmt.Errorf("ask the appliance on %s: %w", c.socket, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, fmt.Errorf("read the answer of the appliance on %s: %w", c.socket, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, errors.New(strings.TrimSpace(string(body)))
	}
	return body, nil
}
