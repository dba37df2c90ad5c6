// SPDX-License-Identifier: GPL-2.0-only
/* A VM: its file, its life, the MMU notifier, requests to all vCPUs. */
#include "shim.h"

#include <linux/anon_inodes.h>
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/uaccess.h>

static void acknowledge(void *unused)
{
}

/*
 * Sets the request bits of every vCPU and waits until none runs guest code with the bits unseen. The order: bits, then
 * in_guest here; in_guest, then bits in sk_vcpu_enter(). Whatever the interleaving, either the vCPU sees the bits
 * before it enters or we see in_guest and interrupt it.
 */
void sk_request_all(struct sk_vm *vm, u32 request)
{
	struct sk_vcpu *vcpu;
	cpumask_var_t mask;
	bool have_mask = zalloc_cpumask_var(&mask, GFP_ATOMIC);
	int cpu;

	preempt_disable();
	list_for_each_entry_rcu(vcpu, &vm->vcpus, node, true) {
		/* A full barrier between the bits and the look at in_guest. */
		atomic_or(request, (atomic_t *)&vcpu->shared->requests);
		smp_mb__after_atomic();
		cpu = READ_ONCE(vcpu->cpu);
		if (!READ_ONCE(vcpu->in_guest) || cpu < 0 || cpu == smp_processor_id())
			continue;
		if (have_mask)
			cpumask_set_cpu(cpu, mask);
	}
	if (have_mask)
		smp_call_function_many(mask, acknowledge, NULL, true);
	else
		smp_call_function(acknowledge, NULL, true);
	preempt_enable();
	if (have_mask)
		free_cpumask_var(mask);
}

void sk_vm_trapped(struct sk_vm *vm, unsigned long site)
{
	cs_report_trap(site);
	/* The one lock that the core takes itself; all others are its callers'. */
	if (READ_ONCE(vm->mmu_lock_owner) == current) {
		WRITE_ONCE(vm->mmu_lock_owner, NULL);
		spin_unlock(&vm->mmu_lock);
	}
	WRITE_ONCE(vm->dead, true);
	sk_request_all(vm, SK_REQUEST_DEAD);
}

static inline struct sk_vm *notifier_vm(struct mmu_notifier *notifier)
{
	return container_of(notifier, struct sk_vm, notifier);
}

static void invalidate(struct sk_vm *vm, unsigned long start, unsigned long end)
{
	/* The lock is Linux's call, not the core's: the owner field stays empty. */
	struct cs_result result = sk_door4(sk_core_invalidate, vm->core, start, end, 0);

	if (unlikely(result.site)) {
		cs_report_trap(result.site);
		WRITE_ONCE(vm->dead, true);
	}
	if (result.value)
		sk_request_all(vm, SK_REQUEST_FLUSH_TLB | (result.site ? SK_REQUEST_DEAD : 0));
}

static int notifier_start(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct sk_vm *vm = notifier_vm(notifier);

	spin_lock(&vm->mmu_lock);
	if (vm->invalidations_running++) {
		vm->invalidation_start = min(vm->invalidation_start, range->start);
		vm->invalidation_end = max(vm->invalidation_end, range->end);
	} else {
		vm->invalidation_start = range->start;
		vm->invalidation_end = range->end;
	}
	invalidate(vm, range->start, range->end);
	spin_unlock(&vm->mmu_lock);
	return 0;
}

static void notifier_end(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct sk_vm *vm = notifier_vm(notifier);

	spin_lock(&vm->mmu_lock);
	vm->invalidation_sequence++;
	vm->invalidations_running--;
	spin_unlock(&vm->mmu_lock);
}

static void notifier_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct sk_vm *vm = notifier_vm(notifier);

	spin_lock(&vm->mmu_lock);
	invalidate(vm, 0, ULONG_MAX);
	spin_unlock(&vm->mmu_lock);
}

static const struct mmu_notifier_ops notifier_ops = {
	.invalidate_range_start = notifier_start,
	.invalidate_range_end = notifier_end,
	.release = notifier_release,
};

static void vm_free(struct kref *refs)
{
	struct sk_vm *vm = container_of(refs, struct sk_vm, refs);
	struct sk_vcpu *vcpu, *next;
	struct cs_result result;

	mutex_lock(&sk_module_lock);
	list_del(&vm->all_vms);
	mutex_unlock(&sk_module_lock);
	debugfs_remove_recursive(vm->debugfs);
	mmu_notifier_unregister(&vm->notifier, vm->mm);
	list_for_each_entry_safe(vcpu, next, &vm->vcpus, node) {
		sk_retire_counters(vcpu);
		sk_vcpu_destroy(vcpu);
	}
	result = sk_door4(sk_core_vm_destroy, vm->core, 0, 0, 0);
	if (result.site)
		cs_report_trap(result.site);
	cleanup_srcu_struct(&vm->slots_srcu);
	mmdrop(vm->mm);
	kvfree(vm->core);
	kfree(vm);
	sk_hardware_put();
}

void sk_vm_put(struct sk_vm *vm)
{
	kref_put(&vm->refs, vm_free);
}

static int vm_release(struct inode *inode, struct file *file)
{
	sk_vm_put(file->private_data);
	return 0;
}

static long vm_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct sk_vm *vm = file->private_data;
	struct cs_result result;

	if (vm->mm != current->mm || READ_ONCE(vm->dead))
		return -EIO;
	if (mutex_lock_killable(&vm->lock))
		return -EINTR;
	result = sk_door4(sk_core_vm_ioctl, vm->core, command, argument, 0);
	if (unlikely(result.site))
		sk_vm_trapped(vm, result.site);
	mutex_unlock(&vm->lock);
	return result.value;
}

static const struct file_operations vm_fops = {
	.owner = THIS_MODULE,
	.release = vm_release,
	.unlocked_ioctl = vm_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

int sk_create_vm(void)
{
	struct cs_result size = sk_door4(sk_core_vm_size, 0, 0, 0, 0);
	struct cs_result result;
	struct sk_vm *vm;
	int error, fd;

	error = sk_hardware_get();
	if (error)
		return error;
	error = -ENOMEM;
	vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	if (!vm)
		goto put_hardware;
	vm->core = kvzalloc(size.value, GFP_KERNEL_ACCOUNT);
	if (!vm->core)
		goto free_vm;
	kref_init(&vm->refs);
	mutex_init(&vm->lock);
	spin_lock_init(&vm->mmu_lock);
	INIT_LIST_HEAD(&vm->vcpus);
	error = init_srcu_struct(&vm->slots_srcu);
	if (error)
		goto free_core;
	result = sk_door4(sk_core_vm_init, vm->core, vm, 0, 0);
	if (result.site)
		cs_report_trap(result.site);
	error = result.value;
	if (error)
		goto free_srcu;
	vm->mm = current->mm;
	mmgrab(vm->mm);
	vm->notifier.ops = &notifier_ops;
	error = mmu_notifier_register(&vm->notifier, vm->mm);
	if (error)
		goto destroy_core;
	mutex_lock(&sk_module_lock);
	list_add(&vm->all_vms, &sk_all_vms);
	mutex_unlock(&sk_module_lock);
	sk_vm_debugfs(vm);
	fd = anon_inode_getfd("kvm-vm", &vm_fops, vm, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		sk_vm_put(vm);
	return fd;

destroy_core:
	mmdrop(vm->mm);
	sk_door4(sk_core_vm_destroy, vm->core, 0, 0, 0);
free_srcu:
	cleanup_srcu_struct(&vm->slots_srcu);
free_core:
	kvfree(vm->core);
free_vm:
	kfree(vm);
put_hardware:
	sk_hardware_put();
	return error;
}

/* Imports of the core (SharpKvm.Host.HostVm). */

void sk_mmu_lock(struct sk_vm *vm)
{
	spin_lock(&vm->mmu_lock);
	WRITE_ONCE(vm->mmu_lock_owner, current);
}

void sk_mmu_unlock(struct sk_vm *vm)
{
	WRITE_ONCE(vm->mmu_lock_owner, NULL);
	spin_unlock(&vm->mmu_lock);
}

u64 sk_invalidation_sequence(struct sk_vm *vm)
{
	u64 sequence = READ_ONCE(vm->invalidation_sequence);

	/* The sequence is read before the page is looked up. */
	smp_rmb();
	return sequence;
}

u32 sk_invalidated(struct sk_vm *vm, u64 sequence, unsigned long address)
{
	lockdep_assert_held(&vm->mmu_lock);
	if (vm->invalidations_running &&
	    address >= vm->invalidation_start && address < vm->invalidation_end)
		return true;
	return vm->invalidation_sequence != sequence;
}

void sk_flush_tlbs(struct sk_vm *vm)
{
	sk_request_all(vm, SK_REQUEST_FLUSH_TLB);
}

void sk_synchronize_slots(struct sk_vm *vm)
{
	/* A vCPU stays in its read section while it runs the guest: make each renew it. */
	sk_request_all(vm, SK_REQUEST_SLOTS);
	synchronize_srcu_expedited(&vm->slots_srcu);
}
