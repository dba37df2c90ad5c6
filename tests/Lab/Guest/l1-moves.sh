# SPDX-License-Identifier: GPL-2.0-only
# Functions for jobs that save, load, move and squeeze guests in L1 (bash). A guest's console goes on in one file,
# whoever runs it. $cpus and $memory (MiB) are the guest's.

# vmm PORT CONSOLE COMMAND...: starts QEMU, with its monitor at the port. $vmm is its process.
vmm() {
	local port=$1 console=$2
	shift 2
	"$@" -qmp "tcp:127.0.0.1:$port,server=on,wait=off" </dev/null >>"$console" 2>>"$console.messages" &
	vmm=$!
	vmms+=($vmm)
	await 60 ask "$port" 'info status' >/dev/null
}

# ask PORT COMMAND: what QEMU's monitor answers.
ask() (
	{ exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null || exit
	printf '{"execute":"qmp_capabilities"}{"execute":"human-monitor-command","arguments":{"command-line":"%s"}}\n' \
		"$2" >&3
	while read -t $((60 * LAB_TIME_FACTOR)) -r -u 3 line; do
		case $line in
			'{"return": "'*)
				line=${line#*'": "'}
				printf '%b' "${line%\"*}" | tr -d '\r'
				exit 0 ;;
			'{"error"'*)
				echo "$line"
				exit 1 ;;
		esac
	done
	exit 1
)

# await SECONDS COMMAND...: repeats the command until it succeeds; fails when the time (times LAB_TIME_FACTOR) is up.
await() {
	local end=$((SECONDS + $1 * LAB_TIME_FACTOR))
	shift
	until "$@"; do
		if [ $SECONDS -ge $end ]; then
			echo "gave up: $*" >&2
			return 1
		fi
		sleep 0.2
	done
}

# rounds CONSOLE NUMBER: whether each of the guest's $cpus has come that far.
rounds() {
	local cpu
	for ((cpu = 0; cpu < cpus; cpu++)); do
		grep -q "cpu $cpu round $2: .*date [0-9]" "$1" || return
	done
}

# last CONSOLE: the last round that any CPU has done.
last() {
	sed -n 's/.*cpu [0-9]* round \([0-9]*\): .*date [0-9].*/\1/p' "$1" | sort -n | tail -n 1
}

# remember PORT: keeps the memory of a guest that is stopped.
remember() {
	ask "$1" "pmemsave 0 $((memory << 20)) \\\"/run/before\\\""
}

# compare PORT: says how many bytes differ in the memory of a guest that is stopped, and from which address to which.
compare() {
	ask "$1" "pmemsave 0 $((memory << 20)) \\\"/run/after\\\""
	cmp -l /run/before /run/after |
		awk 'NR == 1 { first = $1 - 1 } { last = $1 - 1 } END { printf "differs %d 0x%x 0x%x\n", NR, first, last }'
	rm /run/before /run/after
}

# moved PORT: whether a migration has ended, well or not.
moved() {
	ask "$1" 'info migrate' | grep -Eq '^(Migration s|S)tatus: (completed|failed|cancelled)'
}

# report PORT: what became of a migration.
report() {
	ask "$1" 'info migrate' | grep -Ei 'status|downtime:|total time:|transferred ram:|dirty sync count|postcopy req'
}

# go_on CONSOLE: waits until the guest has done more rounds. One that came from elsewhere begins with any number.
go_on() {
	await 90 grep -q 'round .*date [0-9]' "$1" || return
	await 90 rounds "$1" $(($(last "$1") + 3))
}

# The ways to move: each takes a console and QEMU's command, and moves the guest from one QEMU to another.

# snapshot: into QEMU's own image, and back to it after the guest has gone on.
snapshot() {
	local console=$1 before
	shift
	truncate -s 1M /run/disk
	vmm 4501 "$console" "$@" -drive if=none,id=state,file=/run/disk,format=raw,snapshot=on
	await 240 rounds "$console" 2 || return
	ask 4501 stop
	remember 4501
	ask 4501 'savevm state'
	printf '\n-- saved\n' >>"$console"
	before=$(last "$console")
	ask 4501 cont
	await 60 rounds "$console" $((before + 3)) || return
	ask 4501 stop
	ask 4501 'loadvm state'
	printf '\n-- loaded\n' >>"$console"
	compare 4501
	ask 4501 cont
	sleep 1
	go_on "$console"
}

# file: into a file, and from there into another QEMU, some seconds later.
file() {
	local console=$1
	shift
	vmm 4501 "$console" "$@"
	await 240 rounds "$console" 2 || return
	ask 4501 stop
	ask 4501 'migrate -d exec:cat>/run/state'
	await 120 moved 4501 || return
	report 4501
	remember 4501
	ask 4501 quit
	sleep 3
	vmm 4502 "$console" "$@" -S -incoming 'exec:cat /run/state'
	arrive 4502 "$console"
}

# live: while it runs.
live() {
	local console=$1
	shift
	vmm 4501 "$console" "$@"
	vmm 4502 "$console" "$@" -S -incoming tcp:127.0.0.1:4600
	await 240 rounds "$console" 2 || return
	ask 4501 'migrate -d tcp:127.0.0.1:4600'
	await 120 moved 4501 || return
	report 4501
	remember 4501
	ask 4501 quit
	arrive 4502 "$console"
}

# postcopy: it runs on at the target, which gets each page when it is touched.
postcopy() {
	local console=$1
	shift
	vmm 4501 "$console" "$@"
	vmm 4502 "$console" "$@" -incoming defer
	ask 4501 'migrate_set_capability postcopy-ram on'
	ask 4502 'migrate_set_capability postcopy-ram on'
	ask 4502 'migrate_incoming tcp:127.0.0.1:4600'
	await 240 rounds "$console" 2 || return
	# So slow that most of the memory is still to come.
	ask 4501 'migrate_set_parameter max-bandwidth 4M'
	ask 4501 'migrate -d tcp:127.0.0.1:4600'
	sleep 2
	ask 4501 'migrate_set_parameter max-bandwidth 1G'
	ask 4501 migrate_start_postcopy
	await 120 moved 4501 || return
	report 4501
	ask 4501 quit
	go_on "$console"
}

# wire ADDRESS: this end of a network of two L1 machines.
wire() {
	modprobe virtio_net && busybox ip address add "$1/24" dev eth0 && busybox ip link set eth0 mtu 9000 up
}

# depart: while it runs, to the other L1, which also gets its memory as it was at last.
depart() {
	local console=$1
	shift
	vmm 4501 "$console" "$@"
	await 240 rounds "$console" 2 || return
	await 240 away || return
	report 4501
	remember 4501
	echo 'went off'
	timeout $((120 * LAB_TIME_FACTOR)) busybox nc -l -p 4700 </run/before
}

# away: whether the guest could be moved to the other L1, which may not be there yet.
away() {
	ask 4501 'migrate -d tcp:10.2.0.2:4600'
	await 120 moved 4501 && ask 4501 'info migrate' | grep -q 'tatus: completed'
}

# land: gets a guest from the other L1.
land() {
	local console=$1
	shift
	vmm 4501 "$console" "$@" -S -incoming tcp:10.2.0.2:4600
	await 400 paused 4501 || return
	await 60 fetch || return
	arrive 4501 "$console"
}

# fetch: the memory that the guest had in the other L1.
fetch() {
	cat </dev/tcp/10.2.0.1/4700 >/run/before && [ -s /run/before ]
}

# arrive PORT CONSOLE: lets the guest go on that has just been loaded.
arrive() {
	await 60 paused "$1" || return
	compare "$1"
	ask "$1" cont
	go_on "$2"
}

paused() {
	ask "$1" 'info status' | grep -Eq 'paused( \(prelaunch\))?$'
}

# episode NAME LOAD UNLOAD COMMAND...: loads the hypervisor, does something with guests, kills what is left of them, and
# unloads. Consoles are /job/NAME*.console.
episode() {
	local name=$1 load=$2 unload=$3 vmms=() start=$SECONDS
	shift 3
	echo "lab: guest $name" >/dev/kmsg
	echo "::$name"
	eval "$load" || return
	"$@" && echo 'went on'
	kill -9 "${vmms[@]}" 2>/dev/null
	wait
	echo "seconds $((SECONDS - start))"
	cat "/job/$name"*.messages
	check_leaks
	eval "$unload" && echo unloaded
}
