#!/bin/sh
# After installing and upgrading. Nothing is enabled or started by itself: a virtual address wants a configuration
# first. What runs is restarted, so that an upgrade is in force; the address is handed over meanwhile.
set -e
if ! getent passwd appliance >/dev/null; then
	useradd --system --user-group --no-create-home --home-dir /var/lib/appliance --shell /usr/sbin/nologin appliance
fi
# An earlier version ran as root. Where the configuration still needs that, this says why.
if [ -e /etc/appliance/config.yaml ]; then
	appliance prepare --unit --config=/etc/appliance/config.yaml || true
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	systemctl try-restart appliance.service || true
fi
if [ ! -e /etc/appliance/config.yaml ]; then
	echo "appliance: next, write /etc/appliance/config.yaml (see /usr/share/doc/appliance/config.yaml), or run"
	echo "  appliance install --help"
fi
exit 0
