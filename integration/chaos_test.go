package integration

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	chaosFor  = flag.Duration("chaos", 45*time.Second, "how long TestMembersInChaos goes on")
	chaosSeed = flag.Uint64("seed", 0, "what TestMembersInChaos does; 0: something else each time")
)

// chaos is a group of four under faults and changes of members.
type chaos struct {
	*trial
	rnd    *rand.Rand
	dead   map[int]bool
	frozen map[int]bool
	cut    map[int]bool
}

// TestMembersInChaos mixes faults and changes of members, on real processes.
// Two nodes never answer at once, a minority never answers, somebody answers while a
// majority can talk, and after the repair all nodes agree on the members.
func TestMembersInChaos(t *testing.T) {
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("again with -seed %d", seed)
	c := &chaos{trial: gather(t), rnd: rand.New(rand.NewPCG(seed, seed))}
	if err := c.app.StartAll(); err != nil {
		t.Fatal(err)
	}
	c.members(t, 0, 1, 2)
	if _, err := c.AddNode(); err != nil {
		t.Fatal(err)
	}
	if err := c.app.Join(3, 0); err != nil {
		t.Fatal(err)
	}
	c.members(t, 0, 1, 2, 3)
	for end := time.Now().Add(*chaosFor); time.Now().Before(end) && !t.Failed(); {
		c.round(t)
	}
	c.oneAnswer(t)
}

// round injects faults into a healthy group, changes its members, and repairs it.
func (c *chaos) round(t *testing.T) {
	t.Helper()
	c.dead, c.frozen, c.cut = map[int]bool{}, map[int]bool{}, map[int]bool{}
	// One of four: a member may go too, and two of three are still a majority.
	hurt := []int{c.rnd.IntN(4)}
	tooMany := c.rnd.IntN(4) == 0
	if tooMany {
		hurt = c.rnd.Perm(4)[:2]
	}
	for _, i := range hurt {
		c.hurt(t, i, tooMany)
	}
	alive := slices.DeleteFunc([]int{0, 1, 2, 3}, func(i int) bool { return slices.Contains(hurt, i) })
	if tooMany {
		c.minorityIsSilent(t, alive)
	} else {
		c.change(t, alive)
		c.holder(t, alive...)
	}
	c.heal(t)
	c.oneAnswer(t)
}

func (c *chaos) hurt(t *testing.T, i int, onlyKill bool) {
	t.Helper()
	what := c.rnd.IntN(5)
	if onlyKill {
		what = 0
	}
	name := c.Nodes[i].Name
	switch what {
	case 0:
		t.Logf("kill %s", name)
		c.app.Kill(i)
		c.dead[i] = true
	case 1:
		t.Logf("stop %s", name)
		if err := c.app.Stop(i); err != nil {
			t.Errorf("%s did not end well: %v", name, err)
		}
		c.dead[i] = true
	case 2:
		t.Logf("freeze %s", name)
		if err := c.app.Freeze(i); err != nil {
			t.Fatal(err)
		}
		c.frozen[i] = true
	case 3:
		t.Logf("cut %s from the others", name)
		var others []int
		for j := range 4 {
			if j != i {
				others = append(others, j)
			}
		}
		if err := c.Lab.Cut(c.Nodes[i], c.Nodes[others[0]], c.Nodes[others[1]], c.Nodes[others[2]]); err != nil {
			t.Fatal(err)
		}
		c.cut[i] = true
	case 4:
		t.Logf("%s loses its disk", name)
		c.app.Kill(i)
		if err := c.app.Forget(i); err != nil {
			t.Fatal(err)
		}
		c.dead[i] = true
	}
}

// change asks for one change of members; the group may refuse it.
func (c *chaos) change(t *testing.T, alive []int) {
	t.Helper()
	if c.rnd.IntN(2) == 0 {
		c.holder(t, alive...) // else in the middle of an election
	}
	asked := alive[c.rnd.IntN(len(alive))]
	whom := c.Nodes[c.rnd.IntN(4)].Name
	args := [][]string{
		{"peers", "remove", whom}, {"peers", "remove", whom}, {"peers", "demote", whom}, {"transfer"},
		{"drain", whom}, {"pin", whom},
	}[c.rnd.IntN(6)]
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	out, err := c.app.Say(ctx, asked, args...)
	t.Logf("%s on %s: %s%v", strings.Join(args, " "), c.Nodes[asked].Name, strings.TrimSpace(out), err != nil)
}

// minorityIsSilent checks that two of four hold nothing.
func (c *chaos) minorityIsSilent(t *testing.T, alive []int) {
	t.Helper()
	ctx := patient(t)
	for c.Holder() >= 0 {
		if ctx.Err() != nil {
			t.Fatal("a holder without a majority goes on answering")
		}
		time.Sleep(10 * time.Millisecond)
	}
	quiet := time.Now()
	time.Sleep(time.Second)
	for _, i := range alive {
		c.silent(t, i, quiet)
	}
}

// heal undoes everything, and waits until all agree.
func (c *chaos) heal(t *testing.T) {
	t.Helper()
	if err := c.Lab.Heal(); err != nil {
		t.Fatal(err)
	}
	for i := range c.frozen {
		if err := c.app.Thaw(i); err != nil {
			t.Fatal(err)
		}
	}
	for i := range c.dead {
		start := c.app.StartWith
		if i == 3 { // no file lists it
			start = func(i int, _ ...string) error { return c.app.Join(i, c.rnd.IntN(3)) }
		}
		if err := start(i); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	problem := "not asked yet"
	for problem != "" {
		if time.Since(began) > 2*patience {
			t.Fatalf("not healed: %s", problem)
		}
		time.Sleep(50 * time.Millisecond)
		problem = c.healed(t)
	}
	t.Logf("healed after %v", time.Since(began).Round(time.Millisecond))
}

// healed brings back who was removed, and says what is missing.
func (c *chaos) healed(t *testing.T) (problem string) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	holder := ""
	for i := range 4 {
		s, err := c.app.Status(ctx, i)
		if err != nil {
			return err.Error()
		}
		voters := map[string]bool{}
		for _, p := range s.Group.Peers {
			voters[p.ID] = p.Role == "voter"
		}
		for j := range 4 {
			name := c.Nodes[j].Name
			if voters[name] {
				continue
			}
			// Some are removed, some demoted; what does not fit is refused. A peer that
			// catches up is neither, and gets its vote by itself.
			if time.Now().UnixMilli()%5 == 0 {
				c.add(ctx, j)
				c.app.Say(ctx, (j+1)%4, "peers", "promote", name)
			}
			return fmt.Sprintf("%s does not count %s: %s", s.ID, name, strings.Join(s.NotReadyTexts(), "; "))
		}
		switch {
		case strings.Contains(strings.Join(s.NotReadyTexts(), "; "), "peers add"):
			// It could not hear of its removal, and so counts itself.
			c.add(ctx, i)
			return s.ID + " is told that it was removed"
		case len(s.NotReady) > 0:
			return s.ID + ": " + strings.Join(s.NotReadyTexts(), "; ")
		case s.Holder == "":
			return s.ID + " knows of no holder"
		case i > 0 && s.Holder != holder:
			return s.ID + " says that " + s.Holder + " holds, another " + holder
		case len(s.Group.Peers) != 4:
			return fmt.Sprintf("%s knows %d peers", s.ID, len(s.Group.Peers))
		case backends(s) != 4:
			return fmt.Sprintf("%s has %d backends", s.ID, backends(s))
		}
		holder = s.Holder
	}
	for i := range 4 {
		if out, err := c.app.Say(ctx, 0, "undrain", c.Nodes[i].Name); err != nil {
			return out
		}
	}
	if out, err := c.app.Say(ctx, 0, "pin", "off"); err != nil {
		return out
	}
	return ""
}

// add takes a peer back by another one.
func (c *chaos) add(ctx context.Context, i int) {
	c.app.Say(ctx, (i+1)%4, "peers", "add", c.Nodes[i].Name+"="+c.Addr(i).String(), "--force")
}
