package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"appliance/integration/scene"
)

// A driver is one way to keep the address alive, on a scene of its own.
type driver struct {
	name  string
	scene *scene.Scene
	program
}

// program is what runs on the three nodes.
type program interface {
	// Start starts what does not run on node i.
	Start(i int) error
	// Kill, Stop, Freeze and Thaw are done to what decides who holds the
	// address, and to nothing else on the node.
	Kill(i int)
	Stop(i int) error
	Freeze(i int) error
	Thaw(i int) error
	// AwaitReady waits until all nodes would serve.
	AwaitReady(ctx context.Context, nodes ...int) error
}

var (
	_ program = (*scene.Appliance)(nil)
	_ program = (*keepalived)(nil)
)

// settle is how long a scene is left alone before each fault, so that one
// trial does not meet the end of the one before.
const settle = 1500 * time.Millisecond

// A way is a driver that has not been built.
type way struct {
	name string
	// ours is the data plane, theirs keepalived's interval between adverts.
	ours, theirs string
	// further is how many load balancers there are beside the first.
	further int
}

func ways() []way {
	return []way{
		{name: "appliance direct", ours: "direct"},
		{name: "appliance nftables", ours: "nftables"},
		{name: "appliance userspace", ours: "userspace"},
		{name: "appliance direct, 200 load balancers", ours: "direct", further: 199},
		{name: "keepalived 1 s", theirs: "1"},
		{name: "keepalived 0.1 s", theirs: "0.1"},
		{name: "keepalived 0.02 s", theirs: "0.02"},
	}
}

// drivers builds a scene for each way. Servers stand on the nodes, as
// apiservers do.
func drivers(ctx context.Context, binary string, ways []way) (out []*driver, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(out))
		}
	}()
	for _, w := range ways {
		o := scene.Setup{Family: scene.IPv4, Stacked: true, Further: w.further}
		if w.theirs != "" {
			o.ClientPort = haproxyPort
		}
		s, err := scene.Build(o)
		if err != nil {
			return out, err
		}
		d := &driver{name: w.name, scene: s}
		out = append(out, d)
		if w.theirs != "" {
			d.program, err = newKeepalived(s, w.theirs)
		} else {
			d.program, err = s.Appliance(scene.Settings{Binary: binary, Plane: w.ours})
		}
		if err != nil {
			return out, fmt.Errorf("%s: %w", w.name, err)
		}
		for i := range s.Nodes {
			if err := d.Start(i); err != nil {
				return out, fmt.Errorf("%s: %w", w.name, err)
			}
		}
		ready, cancel := context.WithTimeout(ctx, patience)
		err = d.AwaitReady(ready, 0, 1, 2)
		cancel()
		if err != nil {
			return out, fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return out, nil
}

func closeAll(ds []*driver) error {
	var first error
	for _, d := range ds {
		if err := d.scene.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// A fault is done to the holder, and undone.
type fault struct {
	name, what string
	do, undo   func(d *driver, holder int) error
}

// transferer is a program that can hand the address over when it is told to.
type transferer interface {
	Transfer(i int) error
}

var errNotThere = errors.New("it has no such thing")

func faults() []fault {
	again := func(d *driver, i int) error { return d.Start(i) }
	return []fault{
		{"kill", "what decides who holds is killed", func(d *driver, i int) error { d.Kill(i); return nil }, again},
		{"stop", "SIGTERM to what decides who holds", func(d *driver, i int) error { return d.Stop(i) }, again},
		{"transfer", "the holder is told to hand over",
			func(d *driver, i int) error {
				t, ok := d.program.(transferer)
				if !ok {
					return errNotThere
				}
				return t.Transfer(i)
			},
			func(*driver, int) error { return nil }},
		{"link", "the holder's link, or its host, is lost",
			func(d *driver, i int) error { return d.scene.Nodes[i].Unplug() },
			func(d *driver, i int) error { return d.scene.Nodes[i].Plug() }},
		{"partition", "the holder is cut off from the other nodes, and clients still reach it",
			func(d *driver, i int) error {
				n := d.scene.Nodes
				return d.scene.Lab.Cut(n[i], n[(i+1)%3], n[(i+2)%3])
			},
			func(d *driver, _ int) error { return d.scene.Lab.Heal() }},
		{"freeze", "what decides who holds is frozen",
			func(d *driver, i int) error { return d.Freeze(i) },
			func(d *driver, i int) error { return d.Thaw(i) }},
		{"backend", "the server on the holder dies",
			func(d *driver, i int) error { d.scene.StopServer(i); return nil },
			func(d *driver, i int) error { return d.scene.StartServer(i) }},
	}
}
