package node

import (
	"appliance/balancer"
	"appliance/configs"
)

// Check turns the config's words into the balancer's.
func Check(c configs.Check) balancer.Check {
	out := balancer.Check{
		Type: c.Type, Inter: c.Inter, FastInter: c.FastInter, DownInter: c.DownInter, Timeout: c.Timeout,
		Rise: c.Rise, Fall: c.Fall, Port: c.Port,
		Method: c.Method, Path: c.Path, Host: c.Host, BearerTokenFile: c.BearerTokenFile,
		Expect: balancer.Expect{Contains: c.Expect.Contains, Matches: c.Expect.Matches},
		TLS:    balancer.Trust(c.TLS),
	}
	for _, h := range c.Headers {
		out.Headers = append(out.Headers, balancer.Header(h))
	}
	for _, s := range c.Expect.Status {
		out.Expect.Status = append(out.Expect.Status, balancer.StatusRange(s))
	}
	return out
}
