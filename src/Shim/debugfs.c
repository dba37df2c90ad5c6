// SPDX-License-Identifier: GPL-2.0-only
/* debugfs: the exit-trace ring of each VM and the counters of the world switch. */
#include "shim.h"

#include <linux/seq_file.h>

struct dentry *sk_debugfs_root;

DEFINE_PER_CPU(u64[SK_COUNTERS], sk_counters);

static int counters_show(struct seq_file *file, void *unused)
{
	u64 sums[SK_COUNTERS] = {};
	int cpu, i;

	for_each_possible_cpu(cpu) {
		for (i = 0; i < SK_COUNTERS; i++)
			sums[i] += per_cpu(sk_counters, cpu)[i];
	}
	/* Each entry loads the guest's and then the host's half, and saves the guest's. */
	seq_printf(file, "vmrun %llu\nvmload %llu\nvmsave %llu\nwrmsr %llu\ntlbflush %llu\nipi %llu\n",
		   sums[SK_ENTRIES], 2 * sums[SK_ENTRIES], sums[SK_ENTRIES] + sums[SK_HOST_SAVES],
		   sums[SK_MSR_WRITES], sums[SK_TLB_FLUSHES], sums[SK_IPIS]);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

static int exits_show(struct seq_file *file, void *unused)
{
	struct sk_vm *vm = file->private;

	seq_puts(file, "# vcpu tsc reason rip info1 info2, oldest first\n");
	sk_vm_call(vm, sk_core_show_exits, vm->core, file, 0);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(exits);

/* A number written makes the core of this VM fail a bounds check: the door is tested by using it. */
static int trap_set(void *vm, u64 unused)
{
	sk_request_all(vm, SK_REQUEST_TRAP, false);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(trap_fops, NULL, trap_set, "%llu\n");

void sk_vm_debugfs(struct sk_vm *vm)
{
	static atomic_t serial;
	char name[32];

	snprintf(name, sizeof(name), "%d-%d", task_pid_nr(current), atomic_inc_return(&serial));
	vm->debugfs = debugfs_create_dir(name, sk_debugfs_root);
	debugfs_create_file("exits", 0400, vm->debugfs, vm, &exits_fops);
	debugfs_create_file("trap", 0200, vm->debugfs, vm, &trap_fops);
}

void sk_debugfs_init(void)
{
	sk_debugfs_root = debugfs_create_dir("sharpkvm", NULL);
	debugfs_create_file("counters", 0400, sk_debugfs_root, NULL, &counters_fops);
}
