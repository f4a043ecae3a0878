package nft

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

// Watch calls changed after each transaction in which somebody took a table of
// ours away, or something out of it, without putting it back. It
// returns when ctx ends, with nil, or when the kernel cannot be listened to.
// changed runs in the goroutine of Watch.
//
// It is the edge to the level of applying everything every few seconds. Events
// that the kernel had no room for count as a change.
func Watch(ctx context.Context, changed func()) error {
	conn, stop, err := events(ctx)
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
			return fmt.Errorf("watching nf_tables: %w; repairs wait for the next round", err)
		}
		for _, m := range messages {
			if t.add(m) {
				changed()
			}
		}
	}
}

// events is a connection on which the kernel tells of each change of nf_tables. The
// end of ctx makes Receive return; stop closes it.
func events(ctx context.Context) (conn *netlink.Conn, stop func(), err error) {
	conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err == nil {
		if err = conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
			conn.Close()
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("watching nf_tables: %w; give the container the capability NET_ADMIN", err)
	}
	wake := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(0, 1)) })
	return conn, func() {
		wake()
		conn.Close()
	}, nil
}

// A transaction gathers the messages of one change of nf_tables.
type transaction struct {
	// harmed are our tables that something was taken away from and that were
	// not made anew since.
	harmed map[string]bool
}

// add takes the next message. It returns true if that was the last of its
// transaction and the transaction has left a table of ours harmed.
func (t *transaction) add(m netlink.Message) bool {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return false
	}
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWGEN:
		harmed := len(t.harmed) > 0
		t.harmed = nil
		return harmed
	case unix.NFT_MSG_NEWTABLE:
		if name, ok := ourTable(m); ok {
			delete(t.harmed, name)
		}
	case unix.NFT_MSG_NEWRULE:
		// We add rules behind those that we have taken away: see rewrite.
		if name, ok := ourTable(m); ok && ourRule(m) {
			delete(t.harmed, name)
		}
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET:
		if name, ok := ourTable(m); ok {
			if t.harmed == nil {
				t.harmed = make(map[string]bool)
			}
			t.harmed[name] = true
		}
	}
	return false
}

// ourRule says that a rule of a message was written by us.
func ourRule(m netlink.Message) bool {
	ad, err := netlink.NewAttributeDecoder(m.Data[nfgenmsgLen:])
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

// ourTable tells which table of ours the message is about.
func ourTable(m netlink.Message) (string, bool) {
	if len(m.Data) < nfgenmsgLen {
		return "", false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[nfgenmsgLen:])
	if err != nil {
		return "", false
	}
	for ad.Next() {
		// The table's name is attribute 1 in messages about tables, chains,
		// rules and sets alike.
		if ad.Type() != unix.NFTA_TABLE_NAME {
			continue
		}
		b, _, _ := bytes.Cut(ad.Bytes(), []byte{0})
		for _, t := range ourTables() {
			if t.name == string(b) && t.family == nftables.TableFamily(m.Data[0]) {
				return t.String(), true
			}
		}
		return "", false
	}
	return "", false
}
