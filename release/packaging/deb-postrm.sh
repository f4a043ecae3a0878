#!/bin/sh
# After removing: configuration, key, the group's data and the user stay; purge removes them.
set -e
if [ "$1" = purge ]; then
	rm -rf /etc/appliance /var/lib/appliance
	rm -f /etc/systemd/system/appliance.service.d/50-configuration.conf
	rmdir /etc/systemd/system/appliance.service.d 2>/dev/null || true
	if [ "$(getent passwd appliance | cut -d: -f6)" = /var/lib/appliance ]; then
		userdel appliance || true
	fi
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
exit 0
