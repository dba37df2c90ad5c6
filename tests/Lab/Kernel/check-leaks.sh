# SPDX-License-Identifier: GPL-2.0-only
# For jobs in L1 (bash). On a kernel with kmemleak, finds memory that nothing points to any more, and says so in the
# kernel log, which fails the job. Elsewhere it does nothing.

# check_leaks: to be called before a module goes out, while the names of its functions can still be told.
check_leaks() {
	local leaks=/sys/kernel/debug/kmemleak line
	[ -e $leaks ] || return 0
	# It reports only what is older than 5 s, and what two scans in a row have found unchanged.
	sleep 6
	echo scan >$leaks
	echo scan >$leaks
	# The first few say enough, and a line takes its time.
	head -n 100 $leaks | while IFS= read -r line; do
		echo "kmemleak: $line" >/dev/kmsg
	done
	echo clear >$leaks
}
