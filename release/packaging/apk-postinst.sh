#!/bin/sh
# Alpine has no systemd; `appliance start` is for whatever supervises there.
echo "appliance: next, write /etc/appliance/config.yaml; see /usr/share/doc/appliance/config.yaml"
exit 0
