package raft

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"appliance/raft/auth"
)

// FuzzControl: whatever a peer or a worker says on a control connection, the peer that is asked does not panic, and
// answers with something that can be sent.
func FuzzControl(f *testing.F) {
	if testing.Short() {
		f.Skip("a group elects in real time, and takes its time; run without -short")
	}
	for _, text := range []string{
		`{"op":"hello","from":"b","heartbeat":150000000,"cluster":"x","hello":{"id":"b"},"claim":{"fit":true}}`,
		`{"op":"account"}`, `{"op":"view"}`, `{"op":"try","body":"e30="}`, `{"op":"follow","after":"x","version":"1"}`,
		`{"op":"admit","peer":{"id":"b","address":"127.0.0.1:1","addresses":["127.0.0.2"]},"joins":true}`,
		`{"op":"propose","change":{"version":1,"set":{"pin":"a"},"remove":["pin"],"once":true}}`,
		`{"op":"add","peer":{"id":"c","address":"127.0.0.1:2"},"force":true}`, `{"op":"transfer","to":"b"}`,
		`{"op":"remove","to":"c","forwarded":true}`, `{"op":"promote","to":"c"}`, `{"op":"demote","to":"c"}`,
	} {
		f.Add([]byte(text), true)
		f.Add([]byte(text), false)
	}
	self := Peer{ID: "a", Addr: netip.MustParseAddrPort("127.0.0.1:10000")} // nobody listens
	g, err := Open(Config{ID: "a", Peers: []Peer{self}, SingleNode: true, DataDir: f.TempDir(), Heartbeat: 50 * ms,
		Security: auth.Security{Keys: []auth.Key{auth.GenerateKey()}}, Log: slog.New(slog.DiscardHandler),
		View: func() ([]byte, error) { return []byte("{}"), nil }})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- g.Run(ctx) }()
	f.Cleanup(func() {
		cancel()
		<-ran // it may have been removed from its group
	})
	for began := time.Now(); !g.hasLeader() && time.Since(began) < time.Minute; {
		time.Sleep(ms)
	}
	f.Fuzz(func(t *testing.T, line []byte, peer bool) {
		var r request
		if json.Unmarshal(line, &r) != nil {
			return
		}
		who := auth.Identity{Role: auth.Worker, ID: "w"}
		if peer {
			who = auth.Identity{Role: auth.Peer, ID: "b"}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*ms)
		defer cancel()
		if _, err := json.Marshal(g.answer(ctx, who, netip.Addr{}, r)); err != nil {
			t.Errorf("the answer to %+v cannot be sent: %v", r, err)
		}
	})
}
