package pathprobe

import (
	"crypto/sha256"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

type probeKey [sha256.Size]byte

// deriveKeys makes keys of the secrets, so that nothing that is signed here means
// anything elsewhere.
func deriveKeys(secrets [][]byte) (keys []probeKey) {
	for _, s := range secrets {
		keys = append(keys, sha256.Sum256(append([]byte("appliance path probe\x00"), s...)))
	}
	return keys
}

// A keyring signs and verifies probes. It is safe for concurrent use.
type keyring struct {
	mu            sync.Mutex
	group, worker []probeKey
	used          map[netip.Addr]probeKey // with which a node signed last
}

// set replaces the keys.
func (k *keyring) set(group, worker []probeKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.group, k.worker = group, worker
	maps.DeleteFunc(k.used, func(_ netip.Addr, key probeKey) bool { return !k.has(key) })
	if k.used == nil {
		k.used = make(map[netip.Addr]probeKey)
	}
}

func (k *keyring) has(key probeKey) bool {
	return slices.Contains(k.group, key) || slices.Contains(k.worker, key)
}

// to is the key to sign with for the node at addr: the one that it signed with
// last, else the first that it should know. It returns false if there is none.
func (k *keyring) to(addr netip.Addr, isWorker bool) (key probeKey, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	keys := k.group
	if isWorker {
		keys = k.worker
	}
	key, ok = k.used[addr]
	if ok && (isWorker || slices.Contains(keys, key)) {
		return key, true // a worker that has become a peer needs another key
	}
	if len(keys) == 0 {
		return key, false
	}
	return keys[0], true
}

// verify reads a frame that is signed with one of the keys. A key of the workers
// speaks for workers only, as isWorker knows them. The result includes the MAC
// address of the sender.
func (k *keyring) verify(frame []byte, isWorker func(netip.Addr) bool) (m probe, mac [6]byte, ok bool) {
	k.mu.Lock()
	keys, ofGroup := slices.Concat(k.group, k.worker), len(k.group)
	k.mu.Unlock()
	for i, key := range keys {
		if m, mac, ok = parseProbe(frame, key[:]); !ok {
			continue
		}
		if i >= ofGroup && !isWorker(m.from) {
			return m, mac, false
		}
		k.mu.Lock()
		if k.has(key) {
			k.used[m.from] = key
		}
		k.mu.Unlock()
		return m, mac, true
	}
	return m, mac, false
}
