package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

const events = `{"Action":"start","Package":"appliance/a"}
{"Action":"run","Package":"appliance/a","Test":"TestSlow"}
{"Action":"output","Package":"appliance/a","Test":"TestSlow","Output":"=== RUN   TestSlow\n"}
{"Action":"pass","Package":"appliance/a","Test":"TestSlow","Elapsed":61.2}
{"Action":"output","Package":"appliance/a","Test":"TestNAT/iptables","Output":"    nat_test.go:9: no iptables\n"}
{"Action":"skip","Package":"appliance/a","Test":"TestNAT/iptables","Elapsed":0}
{"Action":"output","Package":"appliance/a","Test":"TestKernel","Output":"    kernel_test.go:7: this kernel has ip_vs\n"}
{"Action":"skip","Package":"appliance/a","Test":"TestKernel","Elapsed":0}
{"Action":"output","Package":"appliance/a","Output":"PASS\n"}
{"Action":"output","Package":"appliance/a","Output":"ok  \tappliance/a\t61.3s\n"}
{"Action":"pass","Package":"appliance/a","Elapsed":61.3}
{"Action":"output","Package":"appliance/b","Test":"TestBad","Output":"    bad_test.go:7: it is bad\n"}
{"Action":"output","Package":"appliance/b","Test":"TestBad","Output":"    main_test.go:3: log\n        1\n        2\n        3\n"}
{"Action":"output","Package":"appliance/b","Test":"TestBad","Output":"        4\n        5\n        6\n        7\n        8\n        9\n"}
{"Action":"fail","Package":"appliance/b","Test":"TestBad","Elapsed":0.1}
{"Action":"output","Package":"appliance/b","Output":"FAIL\n"}
{"Action":"output","Package":"appliance/b","Output":"FAIL\tappliance/b\t0.1s\n"}
{"Action":"fail","Package":"appliance/b","Elapsed":0.1}
`

// long is what one test prints first of the log of a node.
const long = "    main_test.go:3: log\n        1\n        2\n        3\n        4\n        5\n        6\n        7\n"

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name    string
		verbose bool
		want    string
	}{
		{"verbose", true, "=== RUN   TestSlow\n" +
			"    nat_test.go:9: no iptables\n" +
			"    kernel_test.go:7: this kernel has ip_vs\n" +
			"PASS\nok  \tappliance/a\t61.3s\n" +
			"    bad_test.go:7: it is bad\n" + long + "        8\n        9\nFAIL\nFAIL\tappliance/b\t0.1s\n"},
		{"what failed", false, "ok  \tappliance/a\t61.3s\n" +
			"FAIL\tappliance/b\t0.1s\n    bad_test.go:7: it is bad\n" + long + "        8\n        9\nFAIL\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if err := new(summary).read(strings.NewReader(events), &out, tt.verbose); err != nil {
				t.Fatal(err)
			}
			if out.String() != tt.want {
				t.Errorf("got\n%s\nwant\n%s", out.String(), tt.want)
			}
		})
	}
}

// A test that ends its package has no line of its own that it failed.
func TestHangIsTold(t *testing.T) {
	var in strings.Builder
	for _, e := range []event{
		{Action: "output", Test: "TestHang", Output: "=== RUN   TestHang\n"},
		{Action: "output", Test: "TestHang", Output: "    hang_test.go:5: begins\n"},
		{Action: "output", Test: "TestHang", Output: "panic: test timed out after 2s\n\trunning tests:\n" +
			"\t\tTestHang (2s)\n\n"},
		{Action: "output", Test: "TestHang", Output: "goroutine 23 [running]:\ntesting.(*M).startAlarm.func1()\n" +
			"\t/usr/local/go/src/testing/testing.go:2802 +0x354\n\n"},
		{Action: "output", Test: "TestHang", Output: "goroutine 22 [chan receive, 2 minutes]:\nsync.wait(...)\n" +
			"\t/usr/local/go/src/sync/wait.go:7\nappliance/raft.(*Group).leave(0x1)\n\t/a/checkout/raft/group.go:577 +0x4f\n" +
			"appliance/raft.(*Group).Run(0x1)\n\t/a/checkout/raft/group.go:300\n"},
		{Action: "output", Output: "FAIL\tappliance/raft\t2.008s\n"},
		{Action: "fail"},
	} {
		e.Package = "appliance/raft"
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		in.Write(append(line, '\n'))
	}
	s := new(summary)
	if err := s.read(strings.NewReader(in.String()), new(strings.Builder), false); err != nil {
		t.Fatal(err)
	}
	want := "raft.TestHang\n    hang_test.go:5: begins\n" +
		"panic: test timed out after 2s\n\trunning tests:\n\t\tTestHang (2s)\n" +
		"    goroutine 22 [chan receive, 2 minutes]: raft/group.go:577\n"
	if got := strings.Join(s.failed, ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWrite(t *testing.T) {
	const skipped = `
== skipped, with the reasons
a.TestNAT/iptables
    no iptables
    (the set-up (integration/setup.sh) has to bring it, or skips.go to say why not)
a.TestKernel
    this kernel has ip_vs
    (this machine's kernel; nothing is missing)

== what took longest
    1m1s  a.TestSlow
      0s  b.TestBad

== stages
`
	const closing = "\nok  \tappliance/a\t61.3s\nFAIL\tappliance/b\t0.1s\n" +
		"\n== what failed\nb.TestBad\n    bad_test.go:7: it is bad\n" + long
	for _, tt := range []struct {
		name string
		ci   bool
		err  error
		want string
		good bool
	}{
		{"good", false, nil, skipped + "    1m2s  unit\n    1m2s  in all\n" + closing, true},
		{"failed", false, errors.New("exit status 1"),
			skipped + "    1m2s  unit: FAILED: exit status 1\n    1m2s  in all\n" + closing + "FAIL\n", false},
		{"CI", true, nil, skipped + "    1m2s  unit\n    1m2s  in all\n" +
			"\nIn CI a test may be skipped only for a reason that integration/stages/skips.go has.\n" +
			closing + "FAIL\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := summary{ci: tt.ci, stages: []stage{{"unit", 62 * time.Second, tt.err}}}
			if err := s.read(strings.NewReader(events), new(strings.Builder), false); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if good := s.write(&out); good != tt.good || out.String() != tt.want {
				t.Errorf("got %t:\n%s\nwant %t:\n%s", good, out.String(), tt.good, tt.want)
			}
		})
	}
}
