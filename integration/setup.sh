#!/usr/bin/env bash
# Installs what a target of the Makefile needs on a fresh Debian 12 machine, and
# nothing that is there already.
#
#   integration/setup.sh build    a Go toolchain
#   integration/setup.sh test     build, and the programs that the tests run against
#   integration/setup.sh release  build, and the emulators for other machines
#   integration/setup.sh bench    test, and the peers that the benchmarks run against
set -euo pipefail
cd "$(dirname "$0")/.."

want=${1:-build}
go_version=$(sed -n 's/^toolchain go//p; t; s/^go //p' go.mod | tail -n 1)

packages=()
need() { # COMMAND PACKAGE...: the packages, where the command is missing
	local command=$1
	shift
	PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || packages+=("$@")
}

# go_is_new_enough: whether a go on the PATH builds this module by itself.
go_is_new_enough() {
	local have
	have=$(PATH=$PWD/.cache/go/bin:$PATH GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || return 1
	[ "$(printf '%s\n%s\n' "$go_version" "${have#go}" | sort -V | head -n 1)" = "$go_version" ]
}

need git git
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
# Debian's own Go is too old to build the module, and good enough to fetch the
# toolchain of the right age with its checksum verified.
go_is_new_enough || need /usr/lib/go-1.19/bin/go golang-1.19-go golang-1.19-src

case $want in
build) ;;
release)
	need qemu-s390x-static qemu-user-static # runs the programs for other machines
	need podman podman                      # takes the image
	need runc runc
	;;
test | bench)
	need gcc gcc libc6-dev # the race detector needs cgo
	need ip iproute2
	need nft nftables
	need iptables-nft iptables
	need systemd-analyze systemd # the units that `manifest` writes are verified
	need ipvsadm ipvsadm
	need rpm rpm               # takes the released package
	need containerd containerd # takes the released image
	need etcd etcd-server
	need etcdctl etcd-client
	need promtool prometheus # the alerts are tested as rules
	need keepalived keepalived # is changed over from, with haproxy
	need haproxy haproxy
	need nginx nginx # and from, on every node
	[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || packages+=(libnginx-mod-stream)
	need chromium chromium
	need /usr/lib/frr/bgpd frr # routers that the tests announce to
	need bird bird2
	need chromedriver chromium-driver # the status page is looked at in a browser
	if [ "$want" = bench ]; then
		need wrk wrk
	fi
	;;
*)
	echo "setup.sh: unknown target '$want'; write build, test, bench or release" >&2
	exit 2
	;;
esac

if [ ${#packages[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "setup.sh: these Debian packages are missing and only root can install them: ${packages[*]}" >&2
		exit 1
	fi
	# The packages bring daemons; none of them may start on this machine.
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		trap 'rm -f $policy' EXIT
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod +x $policy
	fi
	echo "setup.sh: installing ${packages[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

# A kernel with ip_vs for the tests in a virtual machine. Without one they are
# skipped, with the reason.
if [ "$want" = test ] || [ "$want" = bench ]; then
	sh integration/vm/fetch-kernel.sh || [ $? = 77 ]
fi

if ! go_is_new_enough; then
	platform=linux-$(dpkg --print-architecture)
	echo "setup.sh: fetching Go $go_version for $platform"
	work=$(mktemp -d)
	(
		cd "$work"
		printf 'module setup\n\ngo 1.19\n' >go.mod
		GOFLAGS=-modcacherw GOPATH=$work/path /usr/lib/go-1.19/bin/go \
			mod download "golang.org/toolchain@v0.0.1-go$go_version.$platform"
	)
	rm -rf .cache/go
	mkdir -p .cache
	cp -r "$work/path/pkg/mod/golang.org/toolchain@v0.0.1-go$go_version.$platform" .cache/go
	rm -rf "$work"
	# A module archive keeps neither modes nor nested go.mod files.
	find .cache/go -name _go.mod -execdir mv {} go.mod \;
	chmod +x .cache/go/bin/* .cache/go/pkg/tool/*/*
	go_is_new_enough || {
		echo "setup.sh: the fetched Go $go_version does not run here" >&2
		exit 1
	}
fi
