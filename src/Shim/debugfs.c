// SPDX-License-Identifier: GPL-2.0-only
/* debugfs: the exit-trace ring of each VM and the counters of the world switch. */
#include "shim.h"

#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/sched.h>
#include <linux/seq_file.h>

struct dentry *sk_debugfs_root;

/* Sums over the vCPUs that are gone; guarded by sk_module_lock. */
static struct {
	u64 entries, host_saves, msr_writes, tlb_flushes;
} retired;

void sk_retire_counters(struct sk_vcpu *vcpu)
{
	mutex_lock(&sk_module_lock);
	retired.entries += vcpu->shared->entries;
	retired.host_saves += vcpu->host_saves;
	retired.msr_writes += vcpu->shared->msr_writes;
	retired.tlb_flushes += vcpu->shared->tlb_flushes;
	mutex_unlock(&sk_module_lock);
}

static int counters_show(struct seq_file *file, void *unused)
{
	u64 entries, host_saves, msr_writes, tlb_flushes;
	struct sk_vcpu *vcpu;
	struct sk_vm *vm;

	mutex_lock(&sk_module_lock);
	entries = retired.entries;
	host_saves = retired.host_saves;
	msr_writes = retired.msr_writes;
	tlb_flushes = retired.tlb_flushes;
	list_for_each_entry(vm, &sk_all_vms, all_vms) {
		list_for_each_entry_rcu(vcpu, &vm->vcpus, node, true) {
			entries += vcpu->shared->entries;
			host_saves += vcpu->host_saves;
			msr_writes += vcpu->shared->msr_writes;
			tlb_flushes += vcpu->shared->tlb_flushes;
		}
	}
	mutex_unlock(&sk_module_lock);
	/* Each entry loads the guest's and then the host's half, and saves the guest's. */
	seq_printf(file, "vmrun %llu\nvmload %llu\nvmsave %llu\nwrmsr %llu\ntlbflush %llu\n",
		   entries, 2 * entries, entries + host_saves, msr_writes, tlb_flushes);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

static int exits_show(struct seq_file *file, void *unused)
{
	struct sk_vm *vm = file->private;
	struct sk_exit_trace *entry;
	struct sk_vcpu *vcpu;
	u32 i, next;

	seq_puts(file, "# vcpu tsc reason rip info1 info2, oldest first\n");
	list_for_each_entry_rcu(vcpu, &vm->vcpus, node, true) {
		next = READ_ONCE(vcpu->shared->trace_next);
		for (i = 0; i < SK_TRACE_ENTRIES; i++) {
			entry = &vcpu->shared->trace[(next + i) % SK_TRACE_ENTRIES];
			if (entry->tsc)
				seq_printf(file, "%u %llu %#x %#llx %#llx %#llx\n", vcpu->id, entry->tsc,
					   entry->reason, entry->rip, entry->info1, entry->info2);
		}
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(exits);

/* Any write makes the core of this VM fail a bounds check: the door is tested by using it. */
static ssize_t trap_write(struct file *file, const char __user *from, size_t count, loff_t *offset)
{
	sk_request_all(file_inode(file)->i_private, SK_REQUEST_TRAP);
	return count;
}

static const struct file_operations trap_fops = {
	.owner = THIS_MODULE,
	.write = trap_write,
};

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
