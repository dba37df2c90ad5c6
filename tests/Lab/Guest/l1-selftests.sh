# SPDX-License-Identifier: GPL-2.0-only
# A function for jobs that run Linux's KVM selftests in L1 (bash): $load, $unload, $mark and $kernel_log_mark are set.

# Some of them have thousands of virtual machines and CPUs open.
ulimit -n 16384

# selftest SECONDS COMMAND...: loads the hypervisor, runs a program with a time limit, and unloads. Of its output only
# the end is kept: some print a line for each of many steps.
selftest() {
	local seconds=$1 start job status
	shift
	echo "::$*"
	echo "$kernel_log_mark$*" >/dev/kmsg
	eval "$load" || return
	start=${EPOCHREALTIME/./}
	timeout -k 5 "$seconds" "./$@" </dev/null >/output 2>&1 &
	job=$!
	wait $job
	status=$?
	echo "${mark}milliseconds $(((${EPOCHREALTIME/./} - start) / 1000))"
	# Processes that it has left behind are of its process group.
	kill -9 -- -$job 2>/dev/null && sleep 1
	tail -n 25 /output | cut -c 1-300
	echo "${mark}status $status"
	eval "$unload"
	echo "${mark}unload $?"
	echo "${mark}ended $status $*"
}
