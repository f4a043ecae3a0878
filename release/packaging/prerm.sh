#!/bin/sh
# Before removing; before an upgrade ($1 is upgrade) the old one goes on until the new one takes over.
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
	systemctl disable --now appliance.service || true
fi
exit 0
