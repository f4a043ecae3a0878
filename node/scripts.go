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
	"appliance/mask"
	"appliance/script"
	"appliance/track"
)

// programs are what the configuration names outside of itself. All of it is opened before any of it is put into force.
type programs struct {
	tracks []track.Condition
	hooks  []hook.Receiver
}

// openPrograms opens the checks' files and the programs that cfg names. The error has the place of each problem.
func openPrograms(cfg *configs.Config) (opened programs, err error) {
	var problems []error
	note := func(at configs.Origin, key string, err error) {
		if err != nil {
			problems = append(problems, placed{configs.Problem{Origin: at, Key: key, Text: err.Error()}, err})
		}
	}
	for i, lb := range cfg.LoadBalancers {
		err := openCheck(lb.Check)
		note(lb.Origin, fmt.Sprintf("loadBalancers[%d].check", i), err)
		for _, b := range lb.Backends {
			if b.Check != nil {
				err := openCheck(*b.Check)
				note(b.Origin, fmt.Sprintf("loadBalancers[%d].backends.check", i), err)
			}
		}
	}
	for i, c := range cfg.Tracks {
		t := track.Condition{
			Name: c.Name, Identity: fmt.Sprint(c.Exec, c.User, c.Check, c.Address),
			Inter: c.Inter, Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall, Weight: c.Weight,
		}
		key := fmt.Sprintf("tracks[%d].exec", i)
		if len(c.Exec) > 0 {
			p, err := script.Open(c.Exec, c.User)
			note(c.Origin, key, err)
			t.Probe = func(ctx context.Context) error { return p.Run(ctx, "APPLIANCE_TRACK="+c.Name) }
		} else {
			checker, err := balancer.NewChecker(c.Check)
			note(c.Origin, fmt.Sprintf("tracks[%d].check", i), err)
			t.Probe = func(ctx context.Context) error { return checker.Check(ctx, balancer.Backend{Addr: c.Address}) }
		}
		opened.tracks = append(opened.tracks, t)
	}
	for i, c := range cfg.Hooks {
		h := hook.Receiver{Name: mask.URL(c.URL), On: c.On, Timeout: c.Timeout}
		if c.URL != "" {
			h.Do = hook.Webhook(c.URL)
		} else {
			p, err := script.Open(c.Exec, c.User)
			note(c.Origin, fmt.Sprintf("hooks[%d].exec", i), err)
			h.Name = c.Exec[0]
			h.Do = func(ctx context.Context, e hook.Notice) error { return p.Run(ctx, e.Env()...) }
		}
		opened.hooks = append(opened.hooks, h)
	}
	return opened, errors.Join(problems...)
}

// openCheck says what is wrong with the files or the program of a check.
func openCheck(c balancer.Check) error {
	if c.Type == balancer.CheckProgram {
		_, err := script.Open(c.Exec, c.User)
		return err
	}
	_, err := balancer.NewChecker(c)
	return err
}

// NewChecker is balancer.NewChecker, and knows programs too.
func NewChecker(c balancer.Check) (balancer.Checker, error) {
	if c.Type != balancer.CheckProgram {
		return balancer.NewChecker(c)
	}
	// A file that cannot be run now is looked at again with each run, whose error then says so.
	p, err := script.Open(c.Exec, c.User)
	if p == nil {
		return nil, err
	}
	return programChecker{c, p}, nil
}

// programChecker asks an operator's program about a backend.
type programChecker struct {
	check   balancer.Check
	program *script.Program
}

// Check implements balancer.Checker.
func (p programChecker) Check(ctx context.Context, b balancer.Backend) error {
	at := p.check.At(b)
	return p.program.Run(ctx, "APPLIANCE_BACKEND="+b.String(), "APPLIANCE_ADDRESS="+at.Addr().String(),
		fmt.Sprintf("APPLIANCE_PORT=%d", at.Port()))
}

// placed is an error with its place in the configuration.
type placed struct {
	configs.Problem
	cause error
}

func (p placed) Unwrap() error { return p.cause }

// As makes p a configs.Problem, which no retry mends, unless a file is missing: it may be there in a moment.
func (p placed) As(target any) bool {
	problem, ok := target.(*configs.Problem)
	if !ok || errors.Is(p.cause, fs.ErrNotExist) {
		return false
	}
	*problem = p.Problem
	return true
}

// CheckPrograms says what is wrong with the programs and files that cfg names, with the key of each.
func CheckPrograms(cfg *configs.Config) error {
	_, err := openPrograms(cfg)
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

// balanced reports a change in the balancer to the observer and the hooks.
func (n *node) balanced(e balancer.LoadBalancerEvent) {
	n.observer.Balanced(e)
	if e.Plane {
		n.trials.Chosen(e.LoadBalancer, e.To)
	}
	n.reannounce()
	if e.Backend == "" || e.Plane {
		return
	}
	out := hook.Notice{LoadBalancer: e.LoadBalancer, Backend: e.Backend, Reason: e.Reason}
	switch e.To {
	case string(balancer.Up):
		if e.From == string(balancer.Unknown) {
			return // nothing has changed: this node had not looked yet
		}
		out.Name = hook.BackendUp
	case string(balancer.Down):
		out.Name = hook.BackendDown
	default:
		return
	}
	n.tell(out)
}

// tell hands an event to the hooks, and waits for none.
func (n *node) tell(e hook.Notice) {
	e.Time, e.Node = time.Now(), n.site.self.ID
	n.hooks.Send(e)
}

// put puts what can change live into force, all of it or nothing.
func (n *node) put(ctx context.Context, next *configs.Config) error {
	opened, err := openPrograms(next)
	if err != nil {
		return err
	}
	if n.gaveUpUsers && next.ProgramsOfOthers() {
		return errGaveUpUsers
	}
	if n.balancer != nil {
		if err := capabilities(next); err != nil {
			return err
		}
	}
	// The last step that can fail, and it changes nothing if it does.
	if err := n.ask(ctx, request{config: next}); err != nil {
		return err
	}
	n.tracker.Set(opened.tracks)
	n.hooks.Set(opened.hooks)
	return nil
}
