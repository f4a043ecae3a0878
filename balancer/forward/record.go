package forward

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"appliance/balancer/rawtcp"
	"appliance/connlog"
)

// An ending is why a connection ended: the two letters of haproxy's logs (its configuration manual, "Session state at
// disconnection"), and words.
type ending struct{ letters, words string }

// The endings. The second letter of a client that leaves is its state then.
var (
	endDone          = &ending{"--", "both sides have ended"}
	endDenied        = &ending{"PR", "the client may not connect"}
	endNoProxy       = &ending{"PR", "the client sent no PROXY header"}
	endNotTLS        = &ending{"PR", "the client does not speak TLS"}
	endSilent        = &ending{"cR", "the client did not say in time what it has to"}
	endQueueFull     = &ending{"PQ", "too many clients wait for a backend"}
	endQueueTimeout  = &ending{"sQ", "no backend had room in time"}
	endNoBackend     = &ending{"SC", "no backend takes connections"}
	endUnconnected   = &ending{"SC", "no backend took the connection"}
	endDialTimeout   = &ending{"sC", "no backend took the connection in time"}
	endClientReset   = &ending{"CD", "the client reset the connection"}
	endServerReset   = &ending{"SD", "the backend reset the connection"}
	endClientTimeout = &ending{"cD", "nothing has moved to or from the client for timeouts.client"}
	endServerTimeout = &ending{"sD", "nothing has moved to or from the backend for timeouts.server"}
	endGone          = &ending{"DD", "the backend is down or gone"}
	endShort         = &ending{"RC", "this host is short of something"}
	endStopped       = &ending{"KD", "the appliance stops"}
	endLeft          = map[state]*ending{
		inspecting: {"CR", "the client left before it had said what it has to"},
		waiting:    {"CQ", "the client left while it waited for a backend"},
		dialing:    {"CC", "the client left while a backend was dialed"},
		relaying:   endClientReset,
	}
)

// A Record is what is known of a connection that has ended.
type Record struct {
	LoadBalancer string         `json:"loadBalancer"`
	Client       netip.AddrPort `json:"client"`
	// Frontend is the address that the client went to.
	Frontend netip.AddrPort `json:"frontend"`
	// Backend is empty if the connection never had one.
	Backend string    `json:"backend,omitempty"`
	Began   time.Time `json:"time"`
	// Queue is the time until it was its turn to dial, Connect that until the backend took the connection, and Total the
	// time of the whole; in milliseconds, -1 if it never came to that.
	Queue   int64 `json:"queueMs"`
	Connect int64 `json:"connectMs"`
	Total   int64 `json:"totalMs"`
	// In is from the client, Out to it, in bytes.
	In  uint64 `json:"bytesIn"`
	Out uint64 `json:"bytesOut"`
	// Retries are the dials after the first one.
	Retries int `json:"retries"`
	// Open are the connections at this moment, this one among them: of all, of the frontend, and with the backend.
	Open         int64  `json:"open"`
	OpenFrontend int64  `json:"openFrontend"`
	OpenBackend  uint64 `json:"openBackend"`
	Waiting      int32  `json:"waiting"` // clients that wait for a backend of the frontend
	// End is why it ended, in haproxy's letters, and Why in words.
	End string `json:"end"`
	Why string `json:"why"`
}

// haproxyTime is how haproxy writes dates in its logs.
const haproxyTime = "02/Jan/2006:15:04:05.000"

// Text is the record as one line, which begins as haproxy's with option tcplog.
func (r *Record) Text() string {
	name := func(s string) string { return strings.ReplaceAll(s, " ", "_") }
	backend := name(r.Backend)
	if backend == "" {
		backend = "<NOSRV>"
	}
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	var b strings.Builder
	for _, word := range []string{
		r.Client.String(), " [", r.Began.Format(haproxyTime), "] ", name(r.LoadBalancer), " ", name(r.LoadBalancer), "/",
		backend, " ", num(r.Queue), "/", num(r.Connect), "/", num(r.Total), " ", strconv.FormatUint(r.Out, 10), " ", r.End,
		" ", num(r.Open), "/", num(r.OpenFrontend), "/", num(r.OpenFrontend), "/", strconv.FormatUint(r.OpenBackend, 10), "/",
		strconv.Itoa(r.Retries), " 0/", num(int64(r.Waiting)),
		" to=", r.Frontend.String(), " in=", strconv.FormatUint(r.In, 10), " why=", strconv.Quote(r.Why),
	} {
		b.WriteString(word)
	}
	return b.String()
}

// line is the record in the format of a load balancer's log.
func (r *Record) line(format string) string {
	if format != "json" {
		return r.Text()
	}
	text, err := json.Marshal(r)
	if err != nil {
		return r.Text() // no value of a Record is without a JSON
	}
	return string(text)
}

// sampler is the sampler of a load balancer. The caller holds Forwarder.mu.
func (f *Forwarder) sampler(loadBalancer string) *connlog.Sampler {
	s := f.samplers[loadBalancer]
	if s == nil {
		s = new(connlog.Sampler)
		f.samplers[loadBalancer] = s
	}
	return s
}

// ended logs a connection, if its load balancer has a log. Its sockets are still open.
func (c *conn) ended(why *ending) {
	l, s := c.loop, c.service
	if l.f.log == nil {
		return
	}
	tb := s.table.Load()
	if tb.sampler == nil {
		return
	}
	const ms = int64(time.Millisecond)
	now := nanotime()
	switch tb.sampler.Judge(tb.options.LogEvery, tb.options.LogRate, now) {
	case connlog.NotItsTurn:
		return
	case connlog.TooMany:
		l.f.unlogged()
		return
	}
	r := Record{
		LoadBalancer: tb.loadBalancer, Client: c.source, Frontend: s.frontend, Queue: -1, Connect: -1,
		Began: time.Now().Add(time.Duration(c.accepted - now)), Total: (now - c.accepted) / ms,
		In: c.in, Out: c.out, Retries: max(int(c.dials)-1, 0), OpenFrontend: s.open.Load(),
		Waiting: s.queue.waiting.Load(), End: why.letters, Why: why.words,
	}
	if r.Frontend.Addr().IsUnspecified() {
		r.Frontend = rawtcp.LocalAddr(c.client.fd)
	}
	for _, other := range l.f.loops {
		r.Open += other.open.Load()
	}
	if c.turn != 0 {
		r.Queue = (c.turn - c.accepted) / ms
	}
	if t := c.target; t != nil {
		r.Connect = (c.taken - c.turn) / ms
		r.Backend, r.OpenBackend = t.name(tb), t.open.Load()
	}
	l.f.log(r.line(tb.options.Log))
}

// name is what the operator calls the target.
func (t *target) name(tb *table) string {
	for _, s := range tb.slots {
		if s.target == t && s.name != "" {
			return s.name
		}
	}
	return t.id.Backend.String()
}
