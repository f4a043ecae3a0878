#!/bin/sh
# Alpine has no systemd; `appliance start` is for whatever supervises there, as root, or as this user with the
# capabilities of the systemd unit, after `appliance prepare`.
getent group appliance >/dev/null || addgroup -S appliance
getent passwd appliance >/dev/null ||
	adduser -S -D -H -h /var/lib/appliance -s /sbin/nologin -G appliance appliance
echo "appliance: next, write /etc/appliance/config.yaml; see /usr/share/doc/appliance/config.yaml"
exit 0
