#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
# The first process of the L2 guest: says what it sees, and ends.
export PATH=/bin
for tool in mount uname cat grep uniq poweroff free date; do
	busybox ln -s busybox /bin/$tool
done

mount -t proc proc /proc
mount -t sysfs sys /sys
echo "Hello from the guest's user space."
uname -a
grep -E 'vendor_id|model name|hypervisor' /proc/cpuinfo | grep -v flags | uniq
echo "hypervisor: $(cat /sys/hypervisor/type 2>/dev/null || echo "flag $(grep -c -w hypervisor /proc/cpuinfo) CPU(s)")"
echo "clocksource: $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
grep -E 'MemTotal|MemFree' /proc/meminfo
grep -E 'timer|ttyS|LOC' /proc/interrupts
echo "up for $(cat /proc/uptime)"
echo "Guest done."
poweroff -f
