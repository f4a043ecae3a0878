package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Occupied tells, by an error, which of the frontends somebody else's rule
// translates already. Such a rule names the address and the port; one for all
// addresses of the host is none of our business, since ours come first.
//
// It knows rules as nft and iptables-nft make them, not those that look
// addresses up in a set.
func Occupied(frontends []netip.AddrPort) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("looking for rules of others: %w; give the container the capability NET_ADMIN", err)
	}
	defer conn.Close()
	var errs []error
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet} {
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE,
				Flags: netlink.Request | netlink.Dump,
			},
			Data: []byte{byte(family), unix.NFNETLINK_V0, 0, 0},
		})
		if err != nil {
			return fmt.Errorf("looking for rules of others: %w; see `nft list ruleset`", err)
		}
		for _, m := range messages {
			var r foreignRule
			if err := r.parse(m.Data[nfgenmsgLen:]); err != nil {
				return fmt.Errorf("looking for rules of others: %w", err)
			}
			ours := slices.ContainsFunc(ourTables(), func(t table) bool { return t.name == r.table })
			for _, f := range frontends {
				if !ours && r.translates(f) {
					errs = append(errs, fmt.Errorf("%v is taken: a rule of somebody else in chain %s of table %s %s translates it; "+
						"remove that rule (nft -a list chain %s %s %s), or take another port", f, r.chain, familyName(family), r.table, familyName(family), r.table, r.chain))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// A foreignRule is what we understand of a rule.
type foreignRule struct {
	table, chain string
	dst          netip.Addr // zero: any
	low, high    uint16     // destination ports; 0 and 0: any
	nat          bool       // it changes the destination
	vague        bool       // it asks more of the destination than is understood
	// what each register holds, as far as it is known.
	registers map[uint32]field
}

// A field is a part of a packet.
type field struct{ base, offset, length uint32 }

// Where a packet has what, RFC 791 section 3.1, RFC 8200 section 3, RFC 9293
// section 3.1.
var (
	dst4  = field{unix.NFT_PAYLOAD_NETWORK_HEADER, 16, 4}
	dst6  = field{unix.NFT_PAYLOAD_NETWORK_HEADER, 24, 16}
	dport = field{unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2}
)

func (r foreignRule) translates(f netip.AddrPort) bool {
	anyPort := r.low == 0 && r.high == 0
	return r.nat && !r.vague && r.dst == f.Addr().Unmap() && (anyPort || r.low <= f.Port() && f.Port() <= r.high)
}

func (r *foreignRule) parse(data []byte) error {
	r.registers = make(map[uint32]field)
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_TABLE:
			r.table = ad.String()
		case unix.NFTA_RULE_CHAIN:
			r.chain = ad.String()
		case unix.NFTA_RULE_EXPRESSIONS:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(r.expression)
				}
				return list.Err()
			})
		}
	}
	return ad.Err()
}

// expression takes one NFTA_LIST_ELEM.
func (r *foreignRule) expression(ad *netlink.AttributeDecoder) error {
	ad.ByteOrder = binary.BigEndian
	name := ""
	attrs := make(map[uint16][]byte)
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			ad.Nested(func(in *netlink.AttributeDecoder) error {
				for in.Next() {
					attrs[in.Type()] = in.Bytes()
				}
				return in.Err()
			})
		}
	}
	number := func(attr uint16) uint32 {
		if b := attrs[attr]; len(b) == 4 {
			return binary.BigEndian.Uint32(b)
		}
		return 0
	}
	text := func(attr uint16) string { return string(bytes.TrimRight(attrs[attr], "\x00")) }
	switch name {
	case "payload":
		r.registers[number(unix.NFTA_PAYLOAD_DREG)] = field{number(unix.NFTA_PAYLOAD_BASE), number(unix.NFTA_PAYLOAD_OFFSET), number(unix.NFTA_PAYLOAD_LEN)}
	case "meta":
		delete(r.registers, number(unix.NFTA_META_DREG))
	case "cmp":
		if f, ok := r.registers[number(unix.NFTA_CMP_SREG)]; ok {
			r.compare(f, number(unix.NFTA_CMP_OP), attrs[unix.NFTA_CMP_DATA])
		}
	case "nat":
		r.nat = r.nat || number(unix.NFTA_NAT_TYPE) == unix.NFT_NAT_DNAT
	case "redir":
		r.nat = true
	case "target":
		target := text(unix.NFTA_TARGET_NAME)
		r.nat = r.nat || target == "DNAT" || target == "REDIRECT"
	case "match":
		// struct xt_tcp: two source ports, then the first and the last
		// destination port, in the host's byte order.
		if info := attrs[unix.NFTA_MATCH_INFO]; text(unix.NFTA_MATCH_NAME) == "tcp" && len(info) >= 8 {
			r.low, r.high = binary.NativeEndian.Uint16(info[4:]), binary.NativeEndian.Uint16(info[6:])
		}
	case "range", "lookup", "bitwise", "hash":
		r.vague = r.vague || r.loaded(dst4) || r.loaded(dst6) || r.loaded(dport)
		clear(r.registers)
	}
	return ad.Err()
}

// loaded tells whether a register holds the field.
func (r *foreignRule) loaded(f field) bool {
	for _, have := range r.registers {
		if have == f {
			return true
		}
	}
	return false
}

// compare notes what a field has to be. The data is an attribute of its own.
func (r *foreignRule) compare(f field, op uint32, data []byte) {
	if f != dst4 && f != dst6 && f != dport || len(data) < 4+int(f.length) {
		return
	}
	value := data[4:][:f.length]
	switch {
	case op != unix.NFT_CMP_EQ:
		r.vague = true
	case f == dport:
		r.low = binary.BigEndian.Uint16(value)
		r.high = r.low
	default:
		r.dst, _ = netip.AddrFromSlice(value)
	}
}
