package raft

import (
	"net/netip"
	"strings"
	"testing"

	"appliance/raft/auth"
)

func TestConfigIsRefused(t *testing.T) {
	at := netip.MustParseAddrPort
	good := func() Config {
		return Config{ID: "a", DataDir: "/x", Peers: []Peer{
			{ID: "b", Addr: at("192.0.2.2:10000")}, {ID: "a", Addr: at("[2001:db8::1]:10000")},
			{ID: "c", Addr: at("192.0.2.3:10000"), Witness: true},
		}}
	}
	c := good()
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	if c.Addr != at("[2001:db8::1]:10000") || c.Bind != c.Addr || c.Peers[0].ID != "a" {
		t.Errorf("completed to %+v", c)
	}
	if c.span() >= c.Heartbeat {
		t.Errorf("lease %v, heartbeat %v: a lease has to be over before anybody stands for election", c.span(),
			c.Heartbeat)
	}
	for want, change := range map[string]func(*Config){
		"no data directory":             func(c *Config) { c.DataDir = "" },
		"has no id; set one":            func(c *Config) { c.ID = "" },
		"not among the listed peers":    func(c *Config) { c.ID = "d" },
		`two peers are listed with`:     func(c *Config) { c.Peers[0].ID = "c" },
		"both listed at":                func(c *Config) { c.Peers[0].Addr = c.Peers[2].Addr },
		"no usable address":             func(c *Config) { c.Peers[0].Addr = at("0.0.0.0:10000") },
		"told to be at":                 func(c *Config) { c.Addr = at("192.0.2.9:1") },
		"singleNode with further peers": func(c *Config) { c.SingleNode = true },
		"every listed peer is a witness": func(c *Config) {
			for i := range c.Peers {
				c.Peers[i].Witness = true
			}
		},
		"use 20ms to 1m": func(c *Config) { c.Heartbeat = 1 },
	} {
		c := good()
		change(&c)
		if err := c.complete(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	c = good()
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	for want, s := range map[string]auth.Security{
		"needs a group key":  {},
		"exclude each other": {Insecure: true, Keys: []auth.Key{auth.GenerateKey()}},
		"need all of ca":     {CA: "ca.pem"},
	} {
		if _, err := s.Credentials("a", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
