#!/bin/sh
# After installing and upgrading. Nothing is enabled or started by itself: a virtual address wants a configuration
# first. What runs is restarted, so that an upgrade is in force; the address is handed over meanwhile.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	systemctl try-restart appliance.service || true
fi
if [ ! -e /etc/appliance/config.yaml ]; then
	echo "appliance: next, write /etc/appliance/config.yaml (see /usr/share/doc/appliance/config.yaml), or run"
	echo "  appliance install --help"
fi
exit 0
