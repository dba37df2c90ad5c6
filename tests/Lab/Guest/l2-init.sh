#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
# The first process of the L2 guest: says what it sees, uses the virtio devices that it has, and ends.
export PATH=/bin
for tool in mount uname hostname cat grep uniq poweroff insmod ip ping wget md5sum head xxd dmesg; do
	busybox ln -s busybox /bin/$tool
done

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
hostname guest
echo "Hello from the guest's user space."
grep -E 'vendor_id|model name' /proc/cpuinfo | uniq
echo "CPUs that see a hypervisor: $(grep -c -w hypervisor /proc/cpuinfo)"
echo "clocksource: $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
grep -E 'MemTotal|MemFree' /proc/meminfo

# transfer NAME ADDRESS: gets a file, and sends it back to be summed up.
transfer() {
	wget -q -O /payload "http://$2/payload"
	echo "$1 received: $(md5sum </payload)"
	echo "$1 sent: $(wget -q -O - --post-file=/payload "http://$2/cgi-bin/sum")"
}

if grep -q 0x1af4 /sys/bus/pci/devices/*/vendor; then
	while read -r module; do
		insmod "/modules/$module"
	done </modules/list
	echo "disk: $(md5sum </dev/vda)"
	ip link set eth0 up
	ip address add 10.0.2.15/24 dev eth0
	transfer user 10.0.2.2:8080
	ip link set eth1 up
	ip address add 10.1.0.2/24 dev eth1
	ping -c 2 10.1.0.1
	transfer vhost 10.1.0.1:8080
	echo "random source: $(cat /sys/class/misc/hw_random/rng_current)"
	echo "random: $(head -c 64 /dev/hwrng | xxd -p -c 64)"
	dmesg >"$(echo /dev/vport*p1)"
fi

cat /proc/interrupts
echo "up for $(cat /proc/uptime)"
uname -a
echo "Guest done."
poweroff -f
