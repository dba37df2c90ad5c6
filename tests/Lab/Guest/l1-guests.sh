# SPDX-License-Identifier: GPL-2.0-only
# Functions for jobs that boot guests in L1 (bash).

# serve FILE: a web server for guests, with the file as /payload; /cgi-bin/sum sums up what is sent.
serve() {
	mkdir -p /srv/lab/cgi-bin
	cp "$1" /srv/lab/payload
	cat >/srv/lab/cgi-bin/sum <<-'END'
		#!/bin/sh
		printf 'Content-Type: text/plain\r\n\r\n'
		head -c "$CONTENT_LENGTH" | md5sum
	END
	chmod +x /srv/lab/cgi-bin/sum
	busybox httpd -p 8080 -h /srv/lab
}

# tap: L1's end of a network whose virtio queues are served by L1's kernel.
tap() {
	modprobe -a tun vhost_net && busybox tunctl -t tap0 && busybox ip address add 10.1.0.1/24 dev tap0 &&
		busybox ip link set tap0 up
}

# guest NAME SECONDS LOAD UNLOAD COMMAND...: loads the hypervisor, runs QEMU, and unloads. A guest that does not end in
# time (times LAB_TIME_FACTOR) is asked where its CPUs are, and killed.
guest() {
	local name=$1 seconds=$2 load=$3 unload=$4 start qemu watchdog status
	shift 4
	echo "lab: guest $name" >/dev/kmsg
	eval "$load" || return
	echo "::$name"
	start=${EPOCHREALTIME/./}
	"$@" -monitor tcp:127.0.0.1:4444,server=on,wait=off </dev/null 2>"/job/$name.txt" &
	qemu=$!
	(sleep $((seconds * LAB_TIME_FACTOR)); where; kill -9 $qemu) &
	watchdog=$!
	wait $qemu
	status=$?
	kill $watchdog
	printf '\n::%s-end\nstatus %s\nmilliseconds %s\n' "$name" $status $(((${EPOCHREALTIME/./} - start) / 1000))
	cat "/job/$name.txt"
	check_leaks
	eval "$unload" && echo unloaded
}

# where: what QEMU's monitor says of the CPUs.
where() {
	exec 3<>/dev/tcp/127.0.0.1/4444 || return
	printf '\n(does not end)\n'
	printf 'info registers -a\ninfo lapic\ninfo pic\n' >&3
	timeout 5 cat <&3
}

# stopwatch WORD COMMAND...: how long QEMU takes until its guest says WORD; then it is killed. Nothing is printed when
# the guest is silent for a minute.
stopwatch() {
	local word=$1 start=${EPOCHREALTIME/./} line
	shift
	coproc exec "$@" </dev/null 2>/job/qemu.txt
	while read -r -t $((60 * LAB_TIME_FACTOR)) line; do
		if [[ $line == *"$word"* ]]; then
			echo "microseconds $((${EPOCHREALTIME/./} - start))"
			break
		fi
	done <&"${COPROC[0]}"
	cat /job/qemu.txt
	kill -9 "$COPROC_PID"
	wait "$COPROC_PID" 2>/dev/null
}
