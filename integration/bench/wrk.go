package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"appliance/integration/bench/load"
)

// wrkThreads is how many threads wrk has: one for each server, because a thread of wrk has one address.
const wrkThreads = 3

// wrkScript makes wrk write what a load.Measurement has, as the last line. Its percentiles are in µs.
const wrkScript = `local next = 0
local to = {%s}
function setup(thread)
  next = next %% #to + 1
  thread.addr = wrk.lookup(to[next][1], to[next][2])[1]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"Count":%%d,"Errors":%%d,"Took":%%d,"P50":%%f,"P99":%%f,"P999":%%f}\n',
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout, summary.duration * 1000,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
`

// runWrk has wrk do a job of the kind conn or rps: over HTTP, and without a warm-up.
func (f *field) runWrk(ctx context.Context, j load.Job) (r load.Measurement, err error) {
	var to bytes.Buffer
	for _, a := range j.To {
		fmt.Fprintf(&to, "{%q, \"%d\"},", a.Addr(), a.Port())
	}
	script := filepath.Join(f.dir, "wrk.lua")
	if err := os.WriteFile(script, fmt.Appendf(nil, wrkScript, to.String()), 0o644); err != nil {
		return r, err
	}
	args := []string{"-t", fmt.Sprint(wrkThreads), "-c", fmt.Sprint(j.Conns), "-s", script,
		"-d", fmt.Sprint(int((j.For+time.Second-1)/time.Second), "s")}
	if j.Kind == "conn" {
		args = append(args, "-H", "Connection: close")
	}
	var out bytes.Buffer
	cmd := exec.Command("wrk", append(args, "http://"+j.To[0].String()+"/")...)
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	p, err := f.client.Start(cmd)
	if err != nil {
		return r, err
	}
	if err := finish(ctx, p); err != nil {
		return r, err
	}
	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &r); err != nil {
		return r, fmt.Errorf("the last line of wrk, %q: %w", lines[len(lines)-1], err)
	}
	return r, nil
}
