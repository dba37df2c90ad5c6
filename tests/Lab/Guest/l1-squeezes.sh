# SPDX-License-Identifier: GPL-2.0-only
# Functions for jobs that run guests in L1 with less memory than they have (bash); l1-moves.sh is there. Each takes the
# beginning of consoles' names and QEMU's command.

# groups: prepares L1 for groups.
groups() {
	mount -t cgroup2 groups /sys/fs/cgroup && echo +memory >/sys/fs/cgroup/cgroup.subtree_control
}

# group NAME BYTES: a control group with a limit.
group() {
	mkdir "/sys/fs/cgroup/$1" && echo "$2" >"/sys/fs/cgroup/$1/memory.max"
}

# confined GROUP COMMAND...: becomes the command, in the group.
confined() {
	echo $BASHPID >"/sys/fs/cgroup/$1/cgroup.procs"
	shift
	exec "$@"
}

# resident PROCESS: MiB, without what it maps of files.
resident() {
	awk '/^RssAnon/ { print int($2 / 1024) }' "/proc/$1/status"
}

# ksm NAME: one of its numbers.
ksm() {
	cat "/sys/kernel/mm/ksm/$1"
}

# above NUMBER COMMAND..., below NUMBER COMMAND...: whether it prints more, or less.
above() {
	[ "$("${@:2}")" -gt "$1" ]
}

below() {
	[ "$("${@:2}")" -lt "$1" ]
}

# swapped: what a guest has no room for goes out and comes back, round for round.
swapped() {
	local console=$1.console group=/sys/fs/cgroup/small
	shift
	modprobe zram && echo 512M >/sys/block/zram0/disksize && mkswap /dev/zram0 >/dev/null && swapon /dev/zram0 || return
	group small 128M
	vmm 4501 "$console" confined small "$@"
	await 240 rounds "$console" 4 || return
	echo "swapped $(($(<$group/memory.swap.current) >> 20))"
	grep -E '^(pgmajfault|thp_split|workingset_refault_anon) ' $group/memory.stat
	echo max >$group/memory.max
	go_on "$console" || return
	ask 4501 quit
	wait "$vmm"
	rmdir $group
	swapoff /dev/zram0
}

# merged: two equal guests share pages until they write to them, and until all are unmerged.
merged() {
	local name=$1 i
	shift
	for i in 1 2; do
		vmm 450$i "$name-$i.console" "$@"
	done
	for i in 1 2; do
		await 240 rounds "$name-$i.console" 2 || return
	done
	echo 5000 >/sys/kernel/mm/ksm/pages_to_scan
	echo 1 >/sys/kernel/mm/ksm/run
	await 200 above 6000 ksm pages_sharing || return
	echo "sharing $(ksm pages_sharing)"
	for i in 1 2; do
		go_on "$name-$i.console" || return
	done
	echo 2 >/sys/kernel/mm/ksm/run
	echo "unmerged $(ksm pages_sharing)"
	for i in 1 2; do
		go_on "$name-$i.console" || return
	done
}

# ballooned: a guest gives memory back, and gets it again. Linux would fill holes in what it makes huge pages of.
ballooned() {
	local console=$1.console before
	shift
	echo 0 >/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none
	vmm 4501 "$console" "$@" -mem-prealloc -device virtio-balloon-pci
	await 240 rounds "$console" 2 || return
	before=$(resident "$vmm")
	ask 4501 "balloon $((memory - 64))"
	await 240 below $((before - 56)) resident "$vmm"
	echo "resident $before $(resident "$vmm")"
	ask 4501 'info balloon'
	go_on "$console" || return
	ask 4501 "balloon $memory"
	go_on "$console"
}

# killed: Linux kills a guest's QEMU for want of memory; another goes on.
killed() {
	local name=$1 victim
	shift
	group tight 64M
	echo 0 >/sys/fs/cgroup/tight/memory.swap.max
	vmm 4501 "$name-survivor.console" "$@"
	await 240 rounds "$name-survivor.console" 1 || return
	confined tight "$@" </dev/null >/dev/null 2>&1 &
	victim=$!
	wait $victim
	echo "victim $? $(grep -w oom_kill /sys/fs/cgroup/tight/memory.events)"
	go_on "$name-survivor.console"
}
