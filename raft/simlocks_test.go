//go:build sim

package raft

import "unsafe"

// durableLocks says that a goroutine which waits for a mutex does so by the bubble's clock. Package synctest lets time
// pass only while all goroutines of a bubble wait for something of the bubble's, and does not count a mutex: a thread
// that stands still with a lock would stop the world for ever as soon as another wants the lock. The runtime's own table
// of what counts is changed here, which needs -ldflags=-checklinkname=0. Locks that several bubbles share are no matter:
// time then passes for one of them while it waits for another, as it does on a busy host.
const durableLocks = true

//go:linkname idleReasons runtime.isIdleInSynctest
var idleReasons byte

//go:linkname reasonTexts runtime.waitReasonStrings
var reasonTexts byte

// letTimePass changes the table, once.
func letTimePass() {
	texts, idle := unsafe.Pointer(&reasonTexts), unsafe.Pointer(&idleReasons)
	found := 0
	for i := 0; found < 3; i++ { // the last that is looked for is in the table: the runtime prints it
		switch *(*string)(unsafe.Add(texts, uintptr(i)*unsafe.Sizeof(""))) {
		case "sync.Mutex.Lock", "sync.RWMutex.RLock", "sync.RWMutex.Lock":
			*(*bool)(unsafe.Add(idle, i)) = true
			found++
		}
		if i > 100 {
			panic("the runtime has other names for locks; see waitReasonStrings")
		}
	}
}
