package raft

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/feed"
	"appliance/raft/lease"
	"appliance/raft/peerport"
	"appliance/raft/settings"
)

// testdata/v1 is what the first version says and stores. Later versions have to read it as long as
// oldestProtocol and settings.FormatVersion say so. A version that writes another form gets a directory of
// its own, and v1 stays.
var update = flag.Bool("update", false, "write testdata/v1 anew: only before it has been released")

const golden = "testdata/v1"

func goldenPeers() []Peer {
	at := netip.MustParseAddrPort
	return []Peer{
		{ID: "a", Addr: at("192.0.2.1:10000")},
		{ID: "b", Addr: at("[2001:db8::2]:10000"), Further: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
		{ID: "w", Addr: at("192.0.2.3:10000"), Witness: true},
	}
}

// goldenMessages has a value of every JSON message, by name.
func goldenMessages() map[string]any {
	peers := goldenPeers()
	return map[string]any{
		"reply/hello": &reply{
			Hello: &hello{
				ID: "a", Version: "1.0.0", Cluster: "CLUSTER", HasState: true, LastIndex: 17, Term: 3, Leader: "b",
				StartAsLeader: true, Intent: intentTogether, Peers: peers, Members: []string{"a", "b", "w"},
				Self: peers[0], Joins: true,
				Priority: 7, Fitness: Fitness{Unserved: 1, Barred: "a track", Lowered: 5},
				Removed:  "peer a was removed",
				Protocol: 1, Oldest: 1, Heartbeat: 150 * time.Millisecond,
				OnLink: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::1")},
			},
			Datagrams: []byte("0123456789abcdef0123456789abcdef"),
		},
		"reply/account": &reply{Account: &lease.Account{
			Term: 3, Lived: time.Minute, Lease: 45 * time.Millisecond, Dead: map[string]uint64{"w": 2},
			Granted: []lease.GrantAge{{To: "b", Term: 3, Age: 20 * time.Millisecond}},
		}},
		"reply/feed": &reply{Feed: &feed.Feed{
			Version: "0011223344556677", Cluster: "CLUSTER", Index: 17, Data: json.RawMessage(`{"format":1}`),
			Peers: []netip.AddrPort{peers[0].Addr, peers[1].Addr},
		}},
		"reply/view":      &reply{View: []byte(`{"id":"a"}`)},
		"reply/refusal":   &reply{Error: "no"},
		"request/hello":   &request{Op: opHello, From: "b", Heartbeat: 150 * time.Millisecond},
		"request/account": &request{Op: opAccount},
		"request/admit":   &request{Op: opAdmit, Peer: &peers[1], From: "b", Joins: true, Forwarded: true},
		"request/propose": &request{Op: opPropose, Change: &settings.Command{Version: 1,
			Set: map[string]string{"k": "v"}, Remove: []string{"r"}}},
		"request/transfer": &request{Op: opTransfer, To: "b"},
		"request/view":     &request{Op: opView},
		"request/add":      &request{Op: opAdd, Peer: &peers[2], Force: true},
		"request/remove":   &request{Op: opRemove, To: "b", Force: true},
		"request/promote":  &request{Op: opPromote, To: "b"},
		"request/demote":   &request{Op: opDemote, To: "b"},
		"request/follow":   &request{Op: opFollow, After: "0011223344556677"},
		"log/change": &settings.Command{Version: 1, Set: map[string]string{settings.ClusterKey: "CLUSTER"},
			Once: true},
		"log/snapshot": &settings.SnapshotFile{Version: 1,
			Settings: map[string]string{settings.ClusterKey: "CLUSTER", settings.PinKey: "b"}, Index: 17},
		"setting/member": &settings.Member{Addr: peers[1].Addr, Witness: true, Standby: true, Version: "1.0.0"},
		"disk/roster":    &peers,
	}
}

// readGolden is a file of lines "name text".
func readGolden(t *testing.T, name string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(golden, name))
	if err != nil {
		t.Fatal(err)
	}
	lines := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		lines[key] = value
	}
	return lines
}

func writeGolden(t *testing.T, name string, lines map[string]string) {
	t.Helper()
	var all []string
	for key, value := range lines {
		all = append(all, key+" "+value+"\n")
	}
	slices.Sort(all)
	if err := os.MkdirAll(golden, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(golden, name), []byte(strings.Join(all, "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

func encoded(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	if err := peerport.WriteLine(&b, v); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

// decoded reads line as the peer port and the log do, into a value like v.
func decoded(t *testing.T, line string, v any) any {
	t.Helper()
	into := reflect.New(reflect.TypeOf(v).Elem()).Interface()
	if err := peerport.ReadLine(bufio.NewReader(strings.NewReader(line+"\n")), into); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return into
}

// withMore adds a field, as a later version may, to every object that is not a map.
func withMore(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if key != "set" && key != "settings" && key != "dead" {
				v[key] = withMore(value)
			}
		}
		v["ofALaterVersion"] = []any{1, map[string]any{"x": nil}}
	case []any:
		for i := range v {
			v[i] = withMore(v[i])
		}
	}
	return v
}

func TestMessagesOfTheFirstVersion(t *testing.T) {
	messages := goldenMessages()
	if *update {
		lines := make(map[string]string)
		for name, v := range messages {
			lines[name] = encoded(t, v)
		}
		writeGolden(t, "messages.txt", lines)
	}
	lines := readGolden(t, "messages.txt")
	if len(lines) != len(messages) {
		t.Errorf("%d messages in the file, %d here", len(lines), len(messages))
	}
	for name, want := range messages {
		t.Run(name, func(t *testing.T) {
			line := lines[name]
			if got := encoded(t, want); got != line {
				t.Errorf("this version says\n%s\nand the first one says\n%s", got, line)
			}
			if got := decoded(t, line, want); !reflect.DeepEqual(got, want) {
				t.Errorf("read as %+v, want %+v", got, want)
			}
			var loose any
			if err := json.Unmarshal([]byte(line), &loose); err != nil {
				t.Fatal(err)
			}
			more, err := json.Marshal(withMore(loose))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(more, []byte("ofALaterVersion")) {
				t.Fatal("nothing was added")
			}
			got := decoded(t, string(more), want)
			if r, ok := got.(*reply); ok && r.Feed != nil {
				r.Feed.Data = want.(*reply).Feed.Data // is handed on as it is
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("with what a later version may add, read as %+v, want %+v", got, want)
			}
		})
	}
}

// TestPeerThatTellsLittle: a peer of an older version leaves newer fields out.
func TestPeerThatTellsLittle(t *testing.T) {
	const little = `{"hello":{"id":"b","hasState":true,"peers":[{"id":"a","address":"192.0.2.1:10000"},` +
		`{"id":"b","address":"192.0.2.2:10000"}]}}`
	rep := decoded(t, little, &reply{}).(*reply)
	self := hello{ID: "a", Protocol: protocolVersion, Oldest: oldestProtocol, Heartbeat: time.Second, Peers: []Peer{
		{ID: "a", Addr: netip.MustParseAddrPort("192.0.2.1:10000")},
		{ID: "b", Addr: netip.MustParseAddrPort("192.0.2.2:10000")},
	}}
	if why := conflict(self, *rep.Hello); why != "" {
		t.Errorf("refused: %s", why)
	}
}

// goldenBytes are the forms of this package that are not JSON, by name. The tests of auth, deathwatch and
// detector compare their own.
func goldenBytes(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{
		"preambles":           string([]byte{peerport.PreambleRaft, peerport.PreambleWatch, peerport.PreambleControl}),
		"raft/append-entries": hex.EncodeToString(appendEntriesOnTheWire(t)),
	}
}

// appendEntriesOnTheWire is what hashicorp/raft sends for a piece of the log: the library encodes it, and an
// upgrade must not change that unnoticed.
func appendEntriesOnTheWire(t *testing.T) []byte {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	trans, err := hraft.NewTCPTransport("127.0.0.1:0", nil, 1, 10*time.Second, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer trans.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		trans.AppendEntries("b", hraft.ServerAddress(l.Addr().String()), &hraft.AppendEntriesRequest{
			RPCHeader: hraft.RPCHeader{ProtocolVersion: hraft.ProtocolVersionMax, ID: []byte("a"),
				Addr: []byte("192.0.2.1:10000")},
			Term: 3, PrevLogEntry: 16, PrevLogTerm: 2, LeaderCommitIndex: 16,
			Entries: []*hraft.Log{{Index: 17, Term: 3, Type: hraft.LogCommand, Data: []byte(`{"v":1}`)}},
		}, &hraft.AppendEntriesResponse{})
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		c.Close() // it waits for an answer
		<-done
	}()
	var got []byte
	b := make([]byte, 4096)
	for c.SetReadDeadline(time.Now().Add(10 * time.Second)); !bytes.HasSuffix(got, appendEntriesEnd); {
		n, err := c.Read(b)
		got = append(got, b[:n]...)
		if err != nil {
			t.Fatalf("%v after % x", err, got)
		}
	}
	return got
}

// appendEntriesEnd are the last fields with their values, in the order of names.
var appendEntriesEnd = []byte("ProtocolVersion\x03\xa4Term\x03")

func TestBytesOfTheFirstVersion(t *testing.T) {
	now, was := goldenBytes(t), readGolden(t, "bytes.txt")
	if *update {
		maps.Copy(was, now)
		writeGolden(t, "bytes.txt", was)
	}
	for name := range now {
		if now[name] != was[name] {
			t.Errorf("%s is\n%s\nand in the first version\n%s", name, now[name], was[name])
		}
	}
	if len(was) != 11 {
		t.Errorf("%d forms in the file, 11 are compared", len(was))
	}
	if hraft.ProtocolVersionMax != 3 || hraft.SnapshotVersionMax != 1 {
		t.Errorf("the library speaks protocol %d and writes snapshots of version %d: can a group of both "+
			"versions talk?",
			hraft.ProtocolVersionMax, hraft.SnapshotVersionMax)
	}
}

// goldenSettings are in the data directory of the first version: some in its snapshot, some in its log only.
func goldenSettings() (early, late map[string]string) {
	return map[string]string{"early": "in the snapshot", "gone": "soon"}, map[string]string{"late": "in the log"}
}

func dataConfig(b *bench, dir string) Config {
	c := b.config("a")
	c.DataDir, c.SingleNode, c.Heartbeat = dir, true, 0
	c.Peers = goldenPeers()[:1]
	return c
}

// TestDataOfTheFirstVersion: a peer goes on with the disk of its predecessor.
func TestDataOfTheFirstVersion(t *testing.T) {
	b := newBench(t, 1)
	path := filepath.Join(golden, "data.tar.gz")
	early, late := goldenSettings()
	if *update {
		dir := filepath.Join(t.TempDir(), "data")
		n := b.run(dataConfig(b, dir))
		b.holder()
		b.eventually("the group's name on disk, and its member", func() bool {
			id, _ := n.store.Get([]byte(settings.ClusterKey))
			_, ok := settings.MemberOf(n.Settings(), "a")
			return len(id) > 0 && ok
		})
		b.must("the first settings", func() error { return n.Propose(b.ctx(), early) })
		if err := n.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		b.must("the second settings", func() error { return n.Propose(b.ctx(), late, "gone") })
		b.stop("a")
		pack(t, dir, path)
	}
	dir := t.TempDir()
	unpack(t, path, dir)
	g := b.run(dataConfig(b, dir))
	b.holder("a")
	b.eventually("all of the log", func() bool { return g.Settings()["late"] == late["late"] })
	now := g.Settings()
	if now["early"] != early["early"] || now["gone"] != "" {
		t.Errorf("the settings are %v", now)
	}
	g.mu.Lock()
	written := g.written
	g.mu.Unlock()
	if written == "" || now[settings.ClusterKey] != written {
		t.Errorf("the group is %q in the settings and %q on disk", now[settings.ClusterKey], written)
	}
	if m, ok := settings.MemberOf(now, "a"); !ok || m.Addr != goldenPeers()[0].Addr {
		t.Errorf("the member is %+v, %v", m, ok)
	}
	b.must("a change", func() error { return g.Propose(b.ctx(), map[string]string{"new": "version"}) })
	b.stop("a")
	again := b.run(dataConfig(b, dir))
	b.holder("a")
	b.eventually("the change of this version", func() bool { return again.Settings()["new"] == "version" })
}

func pack(t *testing.T, dir, to string) {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: rel, Mode: 0o600, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func unpack(t *testing.T, from, dir string) {
	t.Helper()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for r := tar.NewReader(z); ; files++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if files < 3 { // the database, and a snapshot's state and description
		t.Fatalf("%d files in %s", files, from)
	}
}
