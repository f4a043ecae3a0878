package ruleset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Monitor calls changed, in its own goroutine, after each transaction in which somebody
// removed a table of ours, or something in one, without putting it back, and others
// after each in which another table than ours changed. It returns nil when ctx ends, or
// an error when the kernel reports no more.
//
// So damage is repaired at once, and not only when everything is applied again, which
// happens every few seconds. Events for which the kernel had no room count as damage.
func Monitor(ctx context.Context, changed, others func()) error {
	conn, stop, err := Events(ctx)
	if err != nil {
		return err
	}
	defer stop()
	var t transaction
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			t = transaction{}
			changed()
			continue
		case err != nil:
			return fmt.Errorf("monitoring nf_tables: %w; repairs wait for the next round", err)
		}
		for _, m := range messages {
			if t.add(m) {
				changed()
			}
			if t.theirs {
				others()
			}
		}
	}
}

// Events is a connection on which the kernel reports each change of nf_tables. The end
// of ctx makes Receive return; stop closes the connection.
func Events(ctx context.Context) (conn *netlink.Conn, stop func(), err error) {
	conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err == nil {
		if err = conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
			conn.Close()
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("monitoring nf_tables: %w; give the container the capability NET_ADMIN", err)
	}
	wake := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(0, 1)) })
	return conn, func() {
		wake()
		conn.Close()
	}, nil
}

// A transaction gathers the messages of one change of nf_tables.
type transaction struct {
	// damaged are our tables from which something was removed, and which were not
	// made again since.
	damaged map[string]bool
	// changes says that something of others has changed; theirs, that a transaction that
	// has just ended had such a change.
	changes, theirs bool
}

// add takes the next message. It returns true if that was the last of its transaction
// and the transaction has left a table of ours damaged.
func (t *transaction) add(m netlink.Message) bool {
	t.theirs = false
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return false
	}
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_NEWRULE,
		unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE:
		if _, ok := oursOf(m); !ok {
			t.changes = true
		}
	}
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWGEN:
		damaged := len(t.damaged) > 0
		t.damaged = nil
		t.theirs, t.changes = t.changes, false
		return damaged
	case unix.NFT_MSG_NEWTABLE:
		if name, ok := oursOf(m); ok {
			delete(t.damaged, name)
		}
	case unix.NFT_MSG_NEWRULE:
		// We add rules after removing others; see rewrite.
		if name, ok := oursOf(m); ok && ourRule(m) {
			delete(t.damaged, name)
		}
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET:
		if name, ok := oursOf(m); ok {
			if t.damaged == nil {
				t.damaged = make(map[string]bool)
			}
			t.damaged[name] = true
		}
	}
	return false
}

// ourRule says that we wrote the rule in a message.
func ourRule(m netlink.Message) bool {
	ad, err := netlink.NewAttributeDecoder(m.Data[NfgenmsgLen:])
	if err != nil {
		return false
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_RULE_USERDATA {
			return signed(ad.Bytes())
		}
	}
	return false
}

// oursOf says which table of ours a message is about.
func oursOf(m netlink.Message) (string, bool) {
	if len(m.Data) < NfgenmsgLen {
		return "", false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[NfgenmsgLen:])
	if err != nil {
		return "", false
	}
	for ad.Next() {
		// The table's name is attribute 1 in messages about tables, chains, rules and
		// sets.
		if ad.Type() != unix.NFTA_TABLE_NAME {
			continue
		}
		b, _, _ := bytes.Cut(ad.Bytes(), []byte{0})
		for _, t := range Ours() {
			if t.Name == string(b) && t.Family == nftables.TableFamily(m.Data[0]) {
				return t.String(), true
			}
		}
		return "", false
	}
	return "", false
}
