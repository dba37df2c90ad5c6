#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
# The first process of an L2 guest that is saved, moved or squeezed: on each CPU a worker fills memory, changes a part
# of it over and over, sums up all of it, and says so. $blocks is from the kernel's command line: 938 KiB each, per CPU.
export PATH=/bin
for tool in mount mkdir cat grep seq md5sum nproc date taskset insmod; do
	busybox ln -s busybox /bin/$tool
done

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /ram
mount -t tmpfs -o size=95% ram /ram
echo "Hello from the guest's user space."

# changing ROUND: what the changing part holds, 1 MiB.
changing() {
	cat block
	seq "$1" $(($1 + 20000))
}

# worker CPU: no two pages of a text are the same, wherever it is repeated.
worker() {
	mkdir "/ram/$1"
	cd "/ram/$1" || exit
	seq $(($1 * 1000000 + 1000000)) $(($1 * 1000000 + 1020000)) >text
	cat text text text text text text >block
	for i in $(seq "$blocks"); do
		cat block
	done >fixed
	round=0
	while :; do
		round=$((round + 1))
		changing $round >changing
		state=wrong
		[ "$(md5sum <changing)" != "$(changing $round | md5sum)" ] || state=right
		fixed=$(md5sum <fixed)
		read -r up idle </proc/uptime
		# By way of the kernel's log, whose lines stay whole on the console.
		echo "<2>cpu $1 round $round: changing $state, fixed ${fixed%  -}, up $up, date $(date +%s)" >/dev/kmsg
	done
}

if grep -q 0x1af4 /sys/bus/pci/devices/*/vendor; then
	while read -r module; do
		insmod "/modules/$module"
	done </modules/list
fi

for cpu in $(seq 0 $(($(nproc) - 1))); do
	worker "$cpu" &
	taskset -p "$((1 << cpu))" $! >/dev/null
done
wait
