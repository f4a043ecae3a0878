#!/bin/sh
# After removing: configuration, key and the group's data stay. rpm has no purge.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
exit 0
