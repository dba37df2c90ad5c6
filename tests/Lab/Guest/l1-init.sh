#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
# The first process of L1: mounts the host's root read-only with a throw-away layer on top, and runs the job there; or
# runs it in the root that came with the job, where L1 cannot see the host.
# Kernel messages go to ttyS0, the job's output and the lab's own marks to ttyS1.
export PATH=/bin
for tool in mount mkdir insmod stty dmesg poweroff chroot env cat sync hostname ip tar gzip base64 sed; do
	busybox ln -s busybox /bin/$tool
done

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
hostname l1
ip link set lo up
stty -F /dev/ttyS1 115200 raw -echo
exec </dev/null >/dev/ttyS1 2>&1

fail() {
	echo "@@lab:failed $1"
	stty -F /dev/ttyS1 raw
	poweroff -f
}

while read -r module; do
	insmod "/modules/$module" || fail "insmod $module"
done </modules/list

if [ -e /root/job ]; then
	alone=y
	mkdir -p /root/dev /root/proc /root/sys /root/run /root/tmp
else
	alone=
	share=trans=virtio,version=9p2000.L,msize=1048576
	mount -t 9p -o $share,cache=loose,ro host /host || fail "mount of the host's root"
	mount -t tmpfs -o size=75% layer /layer
	mkdir /layer/upper /layer/work
	mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /root || fail "overlay mount"
	mkdir -p /root/job /root/dev /root/proc /root/sys /root/run
	mount -t 9p -o $share,cache=none job /root/job || fail "mount of the job's folder"
fi
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t debugfs debug /root/sys/kernel/debug
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts pts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs run /root/run
if [ -d /root/job/modules ]; then
	mkdir -p /root/lib/modules
	mount -o bind /root/job/modules /root/lib/modules
fi
[ ! $alone ] || chroot /root /bin/busybox --install -s

echo "@@lab:up $(cat /proc/uptime)"
env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
	chroot /root /bin/bash /job/script.sh
status=$?
dmesg >/root/job/dmesg.txt
[ ! $alone ] || tar -C /root/job -cz . | base64 | sed 's/^/@@lab:file /'
echo "@@lab:exit $status"
sync
stty -F /dev/ttyS1 raw
poweroff -f
