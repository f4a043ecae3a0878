package raft

import (
	"context"
	"errors"
	"fmt"
)

// View asks another peer what it shows of itself: whatever its Config.View
// returns. The group carries it and does not look into it.
func (g *Group) View(ctx context.Context, id string) ([]byte, error) {
	l := g.link(id)
	if l == nil {
		return nil, fmt.Errorf("peer %q is not known here", id)
	}
	rep, err := l.apart(ctx, request{Op: opView})
	if err != nil {
		return nil, err
	}
	if len(rep.View) == 0 {
		return nil, fmt.Errorf("peer %s shows nothing of itself", id)
	}
	return rep.View, nil
}

// view answers opView.
func (g *Group) view(from identity) ([]byte, error) {
	switch {
	case from.role != rolePeer:
		return nil, fmt.Errorf("a %s may not ask for this", from.role)
	case g.cfg.View == nil:
		return nil, errors.New("this peer shows nothing of itself")
	}
	return g.cfg.View()
}
