package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Names of our tables. There is one per concern, so that each is replaced
// whole, in one transaction, without a look at the others.
const (
	silenceTable    = "appliance_silence"
	redirectTable   = "appliance_redirect"
	natTable        = "appliance_nat"
	masqueradeTable = "appliance_ipvs"
	refuseTable     = "appliance_refuse"
	directTable     = "appliance_direct"
	accessTable     = "appliance_access"
)

// ourTables are the tables that Cleanup removes and Watch looks after.
func ourTables() []table {
	return []table{
		{family: nftables.TableFamilyARP, name: silenceTable},
		{family: nftables.TableFamilyINet, name: redirectTable},
		{family: nftables.TableFamilyIPv4, name: natTable},
		{family: nftables.TableFamilyIPv6, name: natTable},
		{family: nftables.TableFamilyINet, name: masqueradeTable},
		{family: nftables.TableFamilyINet, name: refuseTable},
		{family: nftables.TableFamilyINet, name: accessTable},
		{family: nftables.TableFamilyNetdev, name: directTable},
		{family: nftables.TableFamilyIPv4, name: directTable},
		{family: nftables.TableFamilyIPv6, name: directTable},
	}
}

// A table is one table of ours as we want it, whole. It is a value: the
// kernel is made equal to it by a keeper.
type table struct {
	family   nftables.TableFamily
	name     string
	counters []string // named counters; they keep their values when the table is replaced
	chains   []chain
	sets     []set
}

// A chain is a base chain if it has a hook, else it is only gone to.
type chain struct {
	name  string
	hook  *hook
	rules []rule
}

type hook struct {
	kind     nftables.ChainType
	num      nftables.ChainHook
	priority nftables.ChainPriority
	// steps is how many priorities, from priority on, the hook may take; zero
	// means one. See stagger.
	steps  nftables.ChainPriority
	device string // netdev chains only
}

// A rule says why it is there; people read it as the rule's comment.
type rule struct {
	why   string
	exprs []expr.Any
}

// A set is a set, or a map if data is not the zero SetDatatype. Rules refer
// to it by name.
type set struct {
	name     string
	key      nftables.SetDatatype
	data     nftables.SetDatatype
	elements []nftables.SetElement
	// dynamic sets are filled by the kernel's packet path; what they hold
	// is nobody's wish and is not compared.
	dynamic bool
	// size bounds a dynamic set. Others are as large as their elements.
	size uint32
	// timeout is how long an element of a dynamic set lives.
	timeout time.Duration
}

func (s set) isMap() bool { return s.data.Name != "" }

func (t table) String() string { return familyName(t.family) + " " + t.name }

func (t table) kernel() *nftables.Table {
	return &nftables.Table{Family: t.family, Name: t.name}
}

// digest identifies the contents of the table. It stands in the comment of
// every rule, so that the kernel itself tells what it holds, also after a
// restart of ours.
func (t table) digest() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%v %q\n", t, t.counters)
	for _, c := range t.chains {
		fmt.Fprintf(h, "chain %q\n", c.name)
		if c.hook != nil {
			fmt.Fprintf(h, "hook %+v\n", *c.hook)
		}
		for _, r := range c.rules {
			fmt.Fprintf(h, "rule %q\n", r.why)
			for _, e := range r.exprs {
				b, err := expr.Marshal(byte(t.family), e)
				if err != nil {
					return "", fmt.Errorf("encoding a rule of %v: %w", t, err)
				}
				fmt.Fprintf(h, "%x\n", b)
			}
		}
	}
	for _, s := range t.sets {
		fmt.Fprintf(h, "set %q %q %q %v %d %d\n", s.name, s.key.Name, s.data.Name, s.dynamic, s.size, s.timeout)
		for _, e := range s.elements {
			fmt.Fprintf(h, "%x %x", e.Key, e.Val)
			if e.VerdictData != nil {
				fmt.Fprintf(h, " %+v", *e.VerdictData)
			}
			fmt.Fprintln(h)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:6]), nil
}

// comment is the userdata of a rule: nft shows it after the rule.
func (r rule) comment(digest string) []byte {
	// nft takes comments of up to 128 bytes. Names of people may be longer.
	const most = 100
	why := r.why
	if len(why) > most {
		why = strings.ToValidUTF8(why[:most], "")
	}
	return userdata.AppendString(nil, userdata.TypeComment, why+" ["+digest+"]")
}

// carries tells whether a rule read back from the kernel was written by us as
// part of the table with this digest.
func carries(userData []byte, digest string) bool {
	s, ok := userdata.GetString(userData, userdata.TypeComment)
	return ok && strings.HasSuffix(s, "["+digest+"]")
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyNetdev:
		return "netdev"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return fmt.Sprintf("family %d", f)
}
