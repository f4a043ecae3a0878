# The two commands: `make demo` shows the main job, `make test` runs every test.
# Both want root on a Debian 12 machine and install what they need by themselves.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export PATH := $(CURDIR)/.cache/go/bin:$(PATH):/usr/sbin:/sbin
# The toolchain that setup.sh fetched has to be used as it is.
export GOTOOLCHAIN := local

BUSY := 0
ONLY :=
BEGAN := $(shell date +%s)
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Left out of the binary: HTTP/2, which the page never spoke, and a generator of manuals. It is 0.8 MB smaller, and
# strangers have less to try.
TAGS := nethttpomithttp2 urfave_cli_no_docs
LDFLAGS := -s -w -X main.version=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.1.4

.PHONY: demo test build setup-build setup-test setup-bench check lint unit integration clean
.PHONY: matrix skew guides mutants sim compare
.PHONY: bench-failover bench-idle bench-forward bench-ipvs bench-routers

demo: build
	./appliance demo

build: setup-build
	CGO_ENABLED=0 go build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o appliance .

# What was skipped and how long each stage took is said at the end. With BUSY=2
# two threads are busy beside the tests.
test: setup-test
	go run ./integration/stages -since $(BEGAN) -busy $(BUSY) lint unit mutants fuzz integration

setup-build setup-test setup-bench: setup-%:
	integration/setup.sh $*

# What to run before a commit: no root, no packages, nothing but Go. Tests that need more, or minutes, say so and skip.
check: export GOTOOLCHAIN := auto
check:
	@echo '== gofmt, go vet, staticcheck, short tests'
	! gofmt -l . | grep .
	go vet ./...
	go run $(STATICCHECK) ./...
	go test .
	go test -short $$(go list ./... | grep -v -e '/integration' -e '^appliance$$')

lint: setup-test
	@echo '== gofmt, go vet, staticcheck, govulncheck'
	test -z "$$(gofmt -l . | tee /dev/stderr)"
	go vet ./...
	go run $(STATICCHECK) ./...
	integration/govulncheck.sh $(GOVULNCHECK)

# What these two run is in integration/stages.
unit integration: setup-test
	go run ./integration/stages $@

# A group of this version and of another: node by node to this one, and back. FROM is a commit or tag of the repository.
FROM := HEAD~1
skew: setup-test
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && mkdir "$$dir/src" && \
	git archive $(FROM) | tar -x -C "$$dir/src" && (cd "$$dir/src" && CGO_ENABLED=0 go build -o "$$dir/appliance" .) && \
	APPLIANCE_TEST_OTHER_BINARY="$$dir/appliance" go test -count=1 -v -run TestVersionSkew ./integration

# Every guide by the commands of its page, also those that take long, or a machine that does nothing else, because their
# clients must notice nothing.
guides: setup-test
	APPLIANCE_TEST_GUIDES=1 go test -count=1 -v -run '^(TestTakeover|TestFrom.*|TestKubeadm|TestKubeadmFamilies|TestBoxes|TestUnit)$$' \
		./integration

# Every data plane, family, binding of the servers, position of the client and firewall: each client is served, or
# shown as not served with the true reason. ONLY='auto, IPv6' does a part; a number repeats a sample of make test.
matrix: export APPLIANCE_TEST_MATRIX = $(or $(ONLY),all)
matrix: setup-test
	go test -count=1 -timeout 2h -parallel 4 -v -run TestMatrix ./integration

# haproxy, nginx and keepalived serve generated configurations, and we what convert makes of them: the same clients
# reach the same servers while the same ones are down. It goes on for FOR, and once more with keepalived, which needs
# the virtual machine with ip_vs; make test compares one configuration of haproxy and of nginx.
FOR := 5m
compare: setup-test
	go test -count=1 -timeout 0 -v -run TestServesTheSame ./convert -compare.for=$(FOR)
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && CGO_ENABLED=0 go test -c -o "$$dir/convert.test" ./convert && \
	go run ./integration/vm/run -timeout 3h bash -c \
		'ip link set lo up; ip address add 198.51.100.1/32 dev lo; ip address add 198.51.100.2/32 dev lo; ipvsadm -Ln >/dev/null; \
		exec "$$@"' bash \
		"$$dir/convert.test" -test.timeout=0 -test.v -test.run=TestServesTheSame/keepalived -compare.for=$(FOR)

# Each of a list of one-line changes of what "never two" rests on has to make the test fail that is named for it.
# It takes some minutes. ONLY=raft/lease does a part.
mutants: setup-build
	go run ./integration/mutants -only '$(ONLY)'

# Whole groups in virtual time, for that many hours of theirs. A second of one core plays about a minute: two cores play
# four days in an hour.
# A failure prints its seed: SIM_FLAGS=-sim.seed=N plays it again.
SIM_HOURS := 48
SIM_FLAGS :=
sim: setup-build
	go test -tags sim -ldflags=-checklinkname=0 -count=1 -v -timeout 0 -run 'TestSim$$' ./raft \
		-sim.hours=$(SIM_HOURS) $(SIM_FLAGS)

# Clients, strangers and floods at a group for that long, with hand-overs and lost nodes: nothing leaks.
SOAK_TIME := 10m
.PHONY: soak
soak: export APPLIANCE_TEST_SOAK = $(SOAK_TIME)
soak: setup-test
	go test -count=1 -timeout 0 -v -run TestSoak ./integration

# Everything that reads foreign bytes, in turns, for that long: 8h, 30m. What is found stays for the next time; an input
# that fails is written below testdata/fuzz. ONLY='arp|dns' does a part. make test has a few seconds of it.
FUZZ_TIME := 1h
.PHONY: fuzz
fuzz: setup-build
	go run ./integration/fuzz -time $(FUZZ_TIME) -only '$(ONLY)'

bench-failover bench-idle bench-forward bench-ipvs bench-routers: setup-bench
	go run ./integration/bench -suite $(@:bench-%=%)

# A group on a machine that has far too much to do: what moves although nothing fails is counted, for that long beside
# each of three loads.
CALM_FOR := 10m
.PHONY: calm
calm: setup-test
	go run ./integration/calm -for $(CALM_FOR)

# Everything that is published, into dist/: docs/release.md. Each program is built twice and compared, and those for
# other machines are run under emulation.
.PHONY: release release-test setup-release
release: setup-release
	cd release && go run . -root .. -out ../dist -twice $(RELEASE_FLAGS)
	cd release && RELEASE_DIST=$(CURDIR)/dist go test -count=1 -run 'TestForeign|TestPodman' -v .

# A module of its own, so `go test ./...` does not see it.
test: release-test
release-test: setup-test
	@echo '== release: one architecture, its packages and image'
	cd release && go vet . && go test -timeout 15m .

setup-release:
	integration/setup.sh release

clean:
	rm -rf appliance dist .cache
