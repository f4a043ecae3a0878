package configs_test

import (
	"fmt"

	"appliance/configs"
)

// A file needs two keys. The load balancer of the Kubernetes API is the default.
func ExampleParse() {
	const file = `
vips: [192.0.2.10]
peers: [192.0.2.11, 192.0.2.12, 192.0.2.13]
`
	cfg, err := configs.Parse("config.yaml", []byte(file), configs.Source{
		FileExists: func(path string) bool { return path == configs.DefaultKeyFile },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, lb := range cfg.ForBalancer() {
		fmt.Printf("%s: %v by %s, check %s %s\n", lb.Name, lb.Frontends, lb.Scheduler, lb.Check.Type, lb.Check.Path)
		for _, b := range lb.Backends {
			fmt.Println("-", b)
		}
	}
	// Output:
	// kube-apiserver: [192.0.2.10:6443] by rr, check https /readyz
	// - 192.0.2.11:6443
	// - 192.0.2.12:6443
	// - 192.0.2.13:6443
}

// An error has the file, the line, the key and what to write instead.
func ExampleParse_mistake() {
	const file = `vips: [192.0.2.10]
peers: [192.0.2.11, 192.0.2.12, 192.0.2.13]
group: {heartbaet: 200ms, insecure: true}
`
	_, err := configs.Parse("config.yaml", []byte(file), configs.Source{})
	fmt.Println(err)
	// Output: config.yaml:3: group.heartbaet: is not a known key; did you mean heartbeat?
}
