package transport

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"
)

// FuzzRPC: nothing that a peer sends on a connection for raft's messages makes the program panic, and the connection
// comes back to the port that owns it.
func FuzzRPC(f *testing.F) {
	f.Add([]byte("\x00\x80"))                                                        // append entries
	f.Add([]byte("\x01\x83\xa4Term\x05\xa2ID\xa1b\xa4Addr\xb1192.0.2.2:1"))          // request vote
	f.Add([]byte("\x02\x83\xa4Size\x02\xa4Term\x05\xa9Leader\xa1bhi\x03\x81\xa2ID")) // install snapshot
	f.Add([]byte("\x04\x81\xacLastLogIndex\xcf\xff\xff\xff\xff\xff\xff\xff\xff"))    // request pre-vote
	stream := NewStream(nil, netip.MustParseAddrPort("192.0.2.1:1"))
	tr := New(stream, 1e9, freeRules(), hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case rpc := <-tr.Consumer():
				if rpc.Reader != nil {
					io.Copy(io.Discard, rpc.Reader)
				}
				rpc.Respond(&hraft.AppendEntriesResponse{}, nil)
			case <-ctx.Done():
				return
			}
		}
	}()
	relayed := make(chan error, 1)
	go func() { relayed <- tr.Relay(ctx) }()
	f.Cleanup(func() {
		cancel()
		<-ended
		<-relayed
		tr.Close()
	})
	f.Fuzz(func(t *testing.T, sent []byte) {
		if len(sent) > 0 && sent[0] == 2 && len(sent) > 1<<10 {
			return // the rest of a snapshot
		}
		here, there := net.Pipe()
		back := make(chan struct{})
		go func() {
			defer close(back)
			stream.Handle(here)
		}()
		go io.Copy(io.Discard, there)
		there.Write(sent)
		there.Close()
		<-back
	})
}
