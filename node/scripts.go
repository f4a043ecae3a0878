package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"appliance/balancer"
	"appliance/configs"
	"appliance/hook"
	"appliance/script"
	"appliance/track"
)

// What the operator's configuration names outside of itself: checks with their
// files, and programs. All of it is opened before any of it is put into force.
type outside struct {
	tracks []track.Track
	hooks  []hook.Hook
}

// openOutside opens what cfg names. The error has each problem's place.
func openOutside(cfg *configs.Config) (o outside, err error) {
	var problems []error
	note := func(at configs.Origin, key string, err error) {
		if err != nil {
			problems = append(problems, placed{configs.Problem{Origin: at, Key: key, Text: err.Error()}, err})
		}
	}
	for i, lb := range cfg.LoadBalancers {
		_, err := balancer.NewChecker(Check(lb.Check))
		note(lb.Origin, fmt.Sprintf("loadBalancers[%d].check", i), err)
	}
	for i, c := range cfg.Tracks {
		t := track.Track{Name: c.Name, Is: fmt.Sprint(c.Exec, c.Check, c.Address), Inter: c.Inter, Timeout: c.Timeout,
			Rise: c.Rise, Fall: c.Fall, Weight: c.Weight}
		key := fmt.Sprintf("tracks[%d].exec", i)
		if len(c.Exec) > 0 {
			p, err := script.Open(c.Exec)
			note(c.Origin, key, err)
			t.Probe = func(ctx context.Context) error { return p.Run(ctx, "APPLIANCE_TRACK="+c.Name) }
		} else {
			checker, err := balancer.NewChecker(Check(c.Check))
			note(c.Origin, fmt.Sprintf("tracks[%d].check", i), err)
			t.Probe = func(ctx context.Context) error { return checker.Check(ctx, balancer.Backend{Addr: c.Address}) }
		}
		o.tracks = append(o.tracks, t)
	}
	for i, c := range cfg.Hooks {
		h := hook.Hook{Name: c.URL, On: c.On, Timeout: c.Timeout}
		if c.URL != "" {
			h.Do = hook.Webhook(c.URL)
		} else {
			p, err := script.Open(c.Exec)
			note(c.Origin, fmt.Sprintf("hooks[%d].exec", i), err)
			h.Name = c.Exec[0]
			h.Do = func(ctx context.Context, e hook.Event) error { return p.Run(ctx, e.Env()...) }
		}
		o.hooks = append(o.hooks, h)
	}
	return o, errors.Join(problems...)
}

// placed is an error with its place in the configuration.
type placed struct {
	configs.Problem
	cause error
}

func (p placed) Unwrap() error { return p.cause }

// CheckPrograms says what is wrong with the programs and files that cfg names, with the key of each.
func CheckPrograms(cfg *configs.Config) error {
	_, err := openOutside(cfg)
	return err
}

// CheckProgramsHere is CheckPrograms for a file that may be meant for another machine: what does not exist here may
// exist there.
func CheckProgramsHere(cfg *configs.Config) error {
	err := CheckPrograms(cfg)
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	var problems []error
	for _, e := range joined.Unwrap() {
		if !errors.Is(e, fs.ErrNotExist) {
			problems = append(problems, e)
		}
	}
	return errors.Join(problems...)
}

// balanced hands a change in the balancer to those who want to hear of it.
func (n *node) balanced(e balancer.Event) {
	n.sight.balanced(e)
	if e.Backend == "" || e.Plane {
		return
	}
	told := hook.Event{LoadBalancer: e.LoadBalancer, Backend: e.Backend, Reason: e.Reason}
	switch e.To {
	case string(balancer.Up):
		if e.From == string(balancer.Unknown) {
			return // it is as it was before this node began to look
		}
		told.Name = hook.BackendUp
	case string(balancer.Down):
		told.Name = hook.BackendDown
	default:
		return
	}
	n.tell(told)
}

// tell tells the hooks, and waits for none.
func (n *node) tell(e hook.Event) {
	e.Time, e.Node = time.Now(), n.site.self.ID
	n.hooks.Tell(e)
}

// put puts what can change live into force, or nothing of it.
func (n *node) put(ctx context.Context, next *configs.Config) error {
	o, err := openOutside(next)
	if err != nil {
		return err
	}
	if n.balancer != nil {
		if err := capabilities(next); err != nil {
			return err
		}
		n.setting.Lock()
		defer n.setting.Unlock()
		// The last that can fail, and it changes nothing if it does.
		err := n.serve(n.grown(next), func(lbs []balancer.LoadBalancer) error { return n.balancer.Change(ctx, lbs) })
		if err != nil {
			return err
		}
	}
	n.tracker.Set(o.tracks)
	n.hooks.Set(o.hooks)
	n.serving.Store(next)
	n.republish()
	return nil
}
