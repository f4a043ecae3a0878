package hook_test

import (
	"context"
	"fmt"
	"time"

	"appliance/hook"
)

func ExampleDispatcher() {
	d := hook.New(nil)
	d.Set([]hook.Receiver{{
		Name: "print", On: []string{hook.BackendDown}, Timeout: time.Second,
		Do: func(_ context.Context, n hook.Notice) error {
			fmt.Printf("%s: %s of %s: %s\n", n.Name, n.Backend, n.LoadBalancer, n.Reason)
			return nil
		},
	}})
	d.Send(hook.Notice{Name: hook.Holder}) // not wanted
	d.Send(hook.Notice{Name: hook.BackendDown, LoadBalancer: "api", Backend: "cp1", Reason: "connection refused"})

	ctx, stop := context.WithCancel(context.Background())
	stop()
	fmt.Println(d.Run(ctx)) // what was sent before the end is delivered
	// Output:
	// backend-down: cp1 of api: connection refused
	// <nil>
}
