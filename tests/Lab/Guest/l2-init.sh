#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
# The first process of the L2 guest: says what it sees, and ends.
export PATH=/bin
for tool in mount uname hostname cat grep uniq poweroff; do
	busybox ln -s busybox /bin/$tool
done

mount -t proc proc /proc
mount -t sysfs sys /sys
hostname guest
echo "Hello from the guest's user space."
grep -E 'vendor_id|model name' /proc/cpuinfo | uniq
echo "CPUs that see a hypervisor: $(grep -c -w hypervisor /proc/cpuinfo)"
echo "clocksource: $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
grep -E 'MemTotal|MemFree' /proc/meminfo
grep -E 'timer|ttyS|LOC' /proc/interrupts
echo "up for $(cat /proc/uptime)"
uname -a
echo "Guest done."
poweroff -f
