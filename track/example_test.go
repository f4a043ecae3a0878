package track_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"appliance/track"
)

func ExampleTracker() {
	verdicts := make(chan track.Verdict, 1)
	t := track.New(track.Config{Changed: func(v track.Verdict) { verdicts <- v }})
	t.Set([]track.Condition{{
		Name:  "uplink",
		Probe: func(context.Context) error { return errors.New("no route to 192.0.2.1") },
		Inter: time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
	}})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- t.Run(ctx) }()

	fmt.Println((<-verdicts).Barred)
	fmt.Println(t.Status()[0].Reason)
	stop()
	fmt.Println(<-done)
	// Output:
	// failed tracks: uplink
	// no route to 192.0.2.1
	// <nil>
}
