package lease_test

import (
	"fmt"
	"time"

	"appliance/raft/lease"
)

// A leader of three voters answers for 45 ms after the last majority of grants.
func Example() {
	const term, span = 7, 45 * time.Millisecond
	voters := []string{"a", "b", "c"}
	now := time.Second
	clock := func() time.Duration { return now }
	leader := lease.New("a", span, clock, nil)
	fmt.Println("granted, but older leases may run:", leader.Left(term, voters))

	// The voters say what they have granted. B acknowledged a heartbeat of c 30 ms ago.
	wait, enough := lease.Wait("a", term, span, voters, map[string]lease.Account{
		"a": {Term: term, Lived: time.Hour},
		"b": {Term: term, Lived: time.Hour, Granted: []lease.GrantAge{{To: "c", Term: 6, Age: 30 * time.Millisecond}}},
	})
	fmt.Println("wait:", wait, enough)
	now += wait

	leader.Begin(term)
	leader.Grant("b", term, now)
	now += 10 * time.Millisecond
	fmt.Println("10 ms after the last grant:", leader.Left(term, voters))
	now += 35 * time.Millisecond
	fmt.Println("35 ms later:", leader.Left(term, voters))
	// Output:
	// granted, but older leases may run: 0s
	// wait: 15.45ms true
	// 10 ms after the last grant: 35ms
	// 35 ms later: 0s
}
