#!/bin/sh
# Before removing ($1 is 0); before an upgrade ($1 is 1) the old one goes on.
if [ "$1" = 0 ] && [ -d /run/systemd/system ]; then
	systemctl disable --now appliance.service || true
fi
exit 0
