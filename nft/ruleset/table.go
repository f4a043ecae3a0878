package ruleset

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// A Table is one whole table of ours as it is wanted. It is a value; a Reconciler
// makes the kernel equal to it.
type Table struct {
	Family   nftables.TableFamily
	Name     string
	Counters []string // named counters; they keep their values when the table is replaced
	Quotas   []Quota  // full when the table is made or replaced
	Chains   []Chain
	Sets     []Set
}

// A Quota is used up by more bytes than Bytes.
type Quota struct {
	Name  string
	Bytes uint64
}

// A Chain is a base chain if it has a hook; otherwise rules lead to it.
type Chain struct {
	Name  string
	Hook  *BaseHook
	Rules []Rule
}

// A BaseHook says where the kernel calls a base chain.
type BaseHook struct {
	Kind     nftables.ChainType
	Num      nftables.ChainHook
	Priority nftables.ChainPriority
	// Steps is how many priorities, from Priority on, the hook may have; zero means
	// one. See stagger.
	Steps  nftables.ChainPriority
	Device string // netdev chains only
}

// Add appends a rule to the chain.
func (c *Chain) Add(why string, exprs ...[]expr.Any) {
	c.Rules = append(c.Rules, NewRule(why, exprs...))
}

// FilterChain is a base chain that filters.
func FilterChain(name string, num nftables.ChainHook, priority nftables.ChainPriority, rules ...Rule) Chain {
	return Chain{Name: name, Hook: &BaseHook{Kind: nftables.ChainTypeFilter, Num: num, Priority: priority}, Rules: rules}
}

// NATChain is a base chain that translates. It may have NATSteps priorities from
// priority on.
func NATChain(name string, num nftables.ChainHook, priority nftables.ChainPriority, rules ...Rule) Chain {
	return Chain{Name: name, Rules: rules, Hook: &BaseHook{
		Kind: nftables.ChainTypeNAT, Num: num, Priority: priority, Steps: NATSteps,
	}}
}

// A Rule says why it is there: nft shows this as the rule's comment.
type Rule struct {
	Why   string
	Exprs []expr.Any
}

// A Set is a set, or a map if Data is not the zero SetDatatype. Rules refer to it by
// name.
type Set struct {
	Name     string
	Key      nftables.SetDatatype
	Data     nftables.SetDatatype
	Elements []nftables.SetElement
	// Make makes the elements, if they are too many to be kept. Its result never changes.
	Make func() []nftables.SetElement
	// Dynamic says that rules fill the set: its elements are not compared.
	Dynamic bool
	// Size bounds a dynamic set. Others are as large as their elements.
	Size uint32
	// Timeout is how long an element of a dynamic set lives.
	Timeout time.Duration
	// sum replaces the elements in digests, for a set that is used often, and count
	// their number.
	sum   string
	count int
}

// elements are all of the set's.
func (s Set) elements() []nftables.SetElement {
	if s.Make != nil {
		return s.Make()
	}
	return s.Elements
}

// len is how many elements the set has.
func (s Set) len() int {
	if s.sum != "" {
		return s.count
	}
	return len(s.elements())
}

// Summed is s with a sum that is computed once.
func (s Set) Summed() Set {
	elements := s.elements()
	s.sum, s.count = string(s.digest(elements)), len(elements)
	return s
}

// content is what digests include of s.
func (s Set) content() []byte {
	if s.sum != "" {
		return []byte(s.sum)
	}
	return s.digest(s.elements())
}

func (s Set) digest(elements []nftables.SetElement) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %v %d %d\n", s.Name, s.Key.Name, s.Data.Name, s.Dynamic, s.Size, s.Timeout)
	var b []byte
	for _, e := range elements {
		b = append(append(append(b[:0], e.Key...), ' '), e.Val...)
		if e.VerdictData != nil {
			b = append(binary.AppendVarint(append(b, ' '), int64(e.VerdictData.Kind)), e.VerdictData.Chain...)
		}
		h.Write(append(b, '\n'))
	}
	return h.Sum(nil)
}

func (s Set) isMap() bool { return s.Data.Name != "" }

func (t Table) String() string { return FamilyName(t.Family) + " " + t.Name }

// Kernel is the table as the library names it.
func (t Table) Kernel() *nftables.Table {
	return &nftables.Table{Family: t.Family, Name: t.Name}
}

// A Digest identifies the contents of a table and of its chains. The digest of a chain
// is in the comment of each of its rules, so that the kernel itself says what it has,
// even after a restart of ours. It also covers the table's sets; of these, the kernel
// is asked for the number of elements only.
type Digest struct {
	Whole  string
	Chains map[string]string
}

// Digest computes the digest of the table.
func (t Table) Digest() (Digest, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%v\n", t)
	for _, s := range t.Sets {
		h.Write(s.content())
	}
	sets := h.Sum(nil)
	d := Digest{Chains: make(map[string]string)}
	fmt.Fprintf(h, "%q\n", t.Counters)
	for _, c := range t.Chains {
		one := sha256.New()
		one.Write(sets)
		fmt.Fprintf(one, "chain %q\n", c.Name)
		if c.Hook != nil {
			h := c.Hook
			// Other versions compute the same: an upgrade does not replace a table.
			fmt.Fprintf(one, "hook {kind:%v num:%v priority:%v steps:%v device:%v}\n",
				h.Kind, h.Num, h.Priority, h.Steps, h.Device)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(one, "rule %q\n", r.Why)
			for _, e := range r.Exprs {
				b, err := expr.Marshal(byte(t.Family), e)
				if err != nil {
					return Digest{}, fmt.Errorf("encoding a rule of %v: %w", t, err)
				}
				fmt.Fprintf(one, "%x\n", b)
			}
		}
		d.Chains[c.Name] = shorten(one)
		fmt.Fprintln(h, d.Chains[c.Name])
	}
	d.Whole = shorten(h)
	return d, nil
}

// digestLen is the length of a digest, in characters.
const digestLen = 12

func shorten(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil))[:digestLen] }

// comment is the userdata of a rule, which nft shows after the rule.
func (r Rule) comment(digest string) []byte {
	// nft takes comments of up to 128 bytes. Names in the configuration may be longer.
	const most = 100
	why := r.Why
	if len(why) > most {
		why = strings.ToValidUTF8(why[:most], "")
	}
	return userdata.AppendString(nil, userdata.TypeComment, why+" ["+digest+"]")
}

// carries says whether a rule that was read back from the kernel was written by us as
// part of the chain with this digest.
func carries(userData []byte, digest string) bool {
	s, ok := userdata.GetString(userData, userdata.TypeComment)
	return ok && strings.HasSuffix(s, "["+digest+"]")
}

// signed says whether we wrote a rule that was read back from the kernel, for any
// chain.
func signed(userData []byte) bool {
	s, ok := userdata.GetString(userData, userdata.TypeComment)
	if !ok || !strings.HasSuffix(s, "]") || len(s) < digestLen+2 {
		return false
	}
	mark := s[len(s)-1-digestLen : len(s)-1]
	_, err := hex.DecodeString(mark)
	return err == nil && s[len(s)-digestLen-2] == '['
}

// FamilyName is what nft calls the family.
func FamilyName(f nftables.TableFamily) string {
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

// NewRule is a rule of these expressions, one after the other.
func NewRule(why string, exprs ...[]expr.Any) Rule { return Rule{why, slices.Concat(exprs...)} }
