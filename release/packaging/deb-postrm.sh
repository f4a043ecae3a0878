#!/bin/sh
# After removing: configuration, key and the group's data stay; purge removes them.
set -e
if [ "$1" = purge ]; then
	rm -rf /etc/appliance /var/lib/appliance
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
exit 0
