package detector

import (
	"encoding/hex"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func goldenDatagrams() map[string]datagram {
	process, to := [8]byte{1, 2, 3, 4, 5, 6, 7, 8}, [8]byte{9, 10, 11, 12, 13, 14, 15, 16}
	return map[string]datagram{
		"probe": {kind: datagramProbe, from: "a", process: process, to: to, seq: 17, echo: 16, term: 3},
		"sign":  {kind: datagramSign, from: "a", process: process, to: to, seq: 19, echo: 18},
		"reply": {kind: datagramReply, from: "b", process: to, to: process, seq: 18, echo: 17, term: 3,
			silence: []silenceOf{{"c", 20}, {"w", 65535}}},
	}
}

// TestDatagramsOfTheFirstVersion: what is sent stays the same, and what is read too.
func TestDatagramsOfTheFirstVersion(t *testing.T) {
	was := readGolden(t)
	key := []byte("0123456789abcdef0123456789abcdef")
	var from datagramSecret
	copy(from[:], key)
	if now := hex.EncodeToString(from.keyOf("b")); now != was["key/datagrams"] {
		t.Errorf("a key is %s, and in the first version %s", now, was["key/datagrams"])
	}
	sealing := newMacKey(key)
	find := func(string) *macKey { return sealing }
	for name, want := range goldenDatagrams() {
		if now := hex.EncodeToString(want.seal(nil, sealing)); now != was["datagram/"+name] {
			t.Errorf("%s is\n%s\nand in the first version\n%s", name, now, was["datagram/"+name])
		}
		sealed, err := hex.DecodeString(was["datagram/"+name])
		if err != nil {
			t.Fatal(err)
		}
		if got, err := openDatagram(sealed, find); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is read as %+v, %v", name, got, err)
		}
		// A later version appends its fields.
		later := append(slices.Clone(sealed[:len(sealed)-macSize]), "more"...)
		later = append(later, sealing.mac(later)...)
		if got, err := openDatagram(later, find); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s with more fields is read as %+v, %v", name, got, err)
		}
	}
}

// readGolden are the bytes of the first version, by name.
func readGolden(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../testdata/v1/bytes.txt")
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

// TestRefreshedComesLast: earlier versions take it for a later version's field.
func TestRefreshedComesLast(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	sealing := newMacKey(key)
	find := func(string) *macKey { return sealing }
	plain := goldenDatagrams()["reply"]
	marked := plain
	marked.refreshed = true
	old, now := plain.seal(nil, sealing), marked.seal(nil, sealing)
	if !slices.Equal(now[:len(now)-macSize-1], old[:len(old)-macSize]) {
		t.Errorf("a mark is not behind everything else:\n%x\n%x", old, now)
	}
	if got, err := openDatagram(now, find); err != nil || !reflect.DeepEqual(got, marked) {
		t.Errorf("a marked reply is read as %+v, %v", got, err)
	}
	marked.writes = true
	further := marked.seal(nil, sealing)
	if !slices.Equal(further[:len(now)-macSize], now[:len(now)-macSize]) || len(further) != len(now)+1 {
		t.Errorf("the second mark is not behind the first:\n%x\n%x", now, further)
	}
	if got, err := openDatagram(further, find); err != nil || !reflect.DeepEqual(got, marked) {
		t.Errorf("a reply of a peer that waits for its disk is read as %+v, %v", got, err)
	}
}
