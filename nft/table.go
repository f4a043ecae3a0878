package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
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
	refusalTable    = "appliance_refusals"
	handbackTable   = "appliance_handback"
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
		{family: nftables.TableFamilyIPv4, name: handbackTable},
		{family: nftables.TableFamilyIPv6, name: handbackTable},
		{family: nftables.TableFamilyIPv4, name: refusalTable},
		{family: nftables.TableFamilyIPv6, name: refusalTable},
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
	quotas   []quota  // full when the table is made or replaced
	chains   []chain
	sets     []set
}

// A quota is used up by more bytes than that.
type quota struct {
	name  string
	bytes uint64
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
	// sum stands for the elements of a set that is made once and used often.
	sum string
}

// summed is s with its sum.
func (s set) summed() set {
	s.sum = string(s.content())
	return s
}

// content is what digests have of s.
func (s set) content() []byte {
	if s.sum != "" {
		return []byte(s.sum)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %v %d %d\n", s.name, s.key.Name, s.data.Name, s.dynamic, s.size, s.timeout)
	var b []byte
	for _, e := range s.elements {
		b = append(append(append(b[:0], e.Key...), ' '), e.Val...)
		if e.VerdictData != nil {
			b = append(binary.AppendVarint(append(b, ' '), int64(e.VerdictData.Kind)), e.VerdictData.Chain...)
		}
		h.Write(append(b, '\n'))
	}
	return h.Sum(nil)
}

func (s set) isMap() bool { return s.data.Name != "" }

func (t table) String() string { return familyName(t.family) + " " + t.name }

func (t table) kernel() *nftables.Table {
	return &nftables.Table{Family: t.family, Name: t.name}
}

// A digest identifies the contents of a table and of its chains. That of a chain
// stands in the comment of each of its rules, so that the kernel itself tells what
// it holds, also after a restart of ours. It covers the table's sets and quotas
// too; of sets the kernel is only asked for the numbers of elements.
type digest struct {
	whole  string
	chains map[string]string
}

func (t table) digest() (digest, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%v\n", t)
	for _, s := range t.sets {
		h.Write(s.content())
	}
	sets := h.Sum(nil)
	d := digest{chains: make(map[string]string)}
	fmt.Fprintf(h, "%q\n", t.counters)
	for _, c := range t.chains {
		one := sha256.New()
		one.Write(sets)
		fmt.Fprintf(one, "chain %q\n", c.name)
		if c.hook != nil {
			fmt.Fprintf(one, "hook %+v\n", *c.hook)
		}
		for _, r := range c.rules {
			fmt.Fprintf(one, "rule %q\n", r.why)
			for _, e := range r.exprs {
				b, err := expr.Marshal(byte(t.family), e)
				if err != nil {
					return digest{}, fmt.Errorf("encoding a rule of %v: %w", t, err)
				}
				fmt.Fprintf(one, "%x\n", b)
			}
		}
		d.chains[c.name] = shorten(one)
		fmt.Fprintln(h, d.chains[c.name])
	}
	d.whole = shorten(h)
	return d, nil
}

// digestLen is the length of a digest, in characters.
const digestLen = 12

func shorten(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil))[:digestLen] }

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
// part of the chain with this digest.
func carries(userData []byte, digest string) bool {
	s, ok := userdata.GetString(userData, userdata.TypeComment)
	return ok && strings.HasSuffix(s, "["+digest+"]")
}

// signed tells whether we wrote a rule read back from the kernel, for whatever chain.
func signed(userData []byte) bool {
	s, ok := userdata.GetString(userData, userdata.TypeComment)
	if !ok || !strings.HasSuffix(s, "]") || len(s) < digestLen+2 {
		return false
	}
	mark := s[len(s)-1-digestLen : len(s)-1]
	_, err := hex.DecodeString(mark)
	return err == nil && s[len(s)-digestLen-2] == '['
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
