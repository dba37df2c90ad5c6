// SPDX-License-Identifier: GPL-2.0-only
/* A VM: its file, its life, the MMU notifier, requests to all vCPUs. */
#include "shim.h"

#include <linux/anon_inodes.h>
#include <linux/sched/mm.h>

/* Imports of the core (SharpKvm.Host.HostVm). */

/* The VM whose locks the core holds on this CPU: preemption is off under them, so the CPU tells the thread. */
static DEFINE_PER_CPU(struct sk_vm *, mmu_writer);
static DEFINE_PER_CPU(struct sk_vm *, mmu_reader);
static DEFINE_PER_CPU(struct sk_vm *, irq_holder);

void sk_mmu_lock(struct sk_vm *vm)
{
	write_lock(&vm->mmu_lock);
	this_cpu_write(mmu_writer, vm);
}

void sk_mmu_unlock(struct sk_vm *vm)
{
	this_cpu_write(mmu_writer, NULL);
	write_unlock(&vm->mmu_lock);
}

void sk_mmu_read_lock(struct sk_vm *vm)
{
	read_lock(&vm->mmu_lock);
	this_cpu_write(mmu_reader, vm);
}

void sk_mmu_read_unlock(struct sk_vm *vm)
{
	this_cpu_write(mmu_reader, NULL);
	read_unlock(&vm->mmu_lock);
}

void sk_irq_lock(struct sk_vm *vm)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&vm->irq_lock, flags);
	vm->irq_flags = flags;
	this_cpu_write(irq_holder, vm);
}

void sk_irq_unlock(struct sk_vm *vm)
{
	this_cpu_write(irq_holder, NULL);
	raw_spin_unlock_irqrestore(&vm->irq_lock, vm->irq_flags);
}

static_assert(offsetof(struct sk_vm, chip_timer) == sizeof(struct sk_vm_shared));

static void acknowledge(void *unused)
{
}

/*
 * Sets the request bits of every vCPU and sees to it that each looks at them soon, from any context; or, with wait,
 * comes back when none runs guest code with the bits unseen. The order: bits, then in_guest here; in_guest, then bits
 * in sk_vcpu_enter(). Whatever the interleaving, either the vCPU sees the bits before it enters or we see in_guest and
 * interrupt it.
 */
void sk_request_all(struct sk_vm *vm, u32 request, bool wait)
{
	struct sk_vcpu *vcpu;
	cpumask_var_t mask;
	bool have_mask = wait && zalloc_cpumask_var(&mask, GFP_ATOMIC);
	int cpu;

	preempt_disable();
	list_for_each_entry_rcu(vcpu, &vm->vcpus, node, true) {
		/* A full barrier between the bits and the look at in_guest. */
		atomic_or(request, (atomic_t *)&vcpu->shared->request_bits);
		smp_mb__after_atomic();
		cpu = READ_ONCE(vcpu->cpu);
		if (!wait)
			sk_vcpu_kick(vcpu, false);
		else if (have_mask && READ_ONCE(vcpu->in_guest) && cpu != smp_processor_id())
			cpumask_set_cpu(cpu, mask);
	}
	if (have_mask)
		smp_call_function_many(mask, acknowledge, NULL, true);
	else if (wait)
		smp_call_function(acknowledge, NULL, true);
	preempt_enable();
	if (have_mask)
		free_cpumask_var(mask);
}

/* The core has trapped on behalf of a VM, if there is one. */
void sk_trapped(struct sk_vm *vm, unsigned long site)
{
	cs_report_trap(site);
	if (!vm)
		return;
	/* The locks that the core takes itself; all others are its callers'. */
	if (this_cpu_read(irq_holder) == vm)
		sk_irq_unlock(vm);
	if (!in_interrupt() && this_cpu_read(mmu_writer) == vm)
		sk_mmu_unlock(vm);
	if (!in_interrupt() && this_cpu_read(mmu_reader) == vm)
		sk_mmu_read_unlock(vm);
	WRITE_ONCE(vm->dead, true);
	sk_request_all(vm, SK_REQUEST_DEAD, false);
}

static int notifier_start(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct sk_vm *vm = container_of(notifier, struct sk_vm, notifier);

	write_lock(&vm->mmu_lock);
	if (!vm->shared.running++) {
		vm->shared.start = range->start;
		vm->shared.end = range->end;
	}
	vm->shared.start = min_t(u64, vm->shared.start, range->start);
	vm->shared.end = max_t(u64, vm->shared.end, range->end);
	/*
	 * The lock is Linux's call, not the core's: the CPU has no writer. After a trap mappings are left, but no
	 * vCPU comes back to them: it has to leave the guest before Linux goes on.
	 */
	if (sk_vm_call(vm, sk_core_invalidate, vm->core, range->start, range->end))
		sk_request_all(vm, SK_REQUEST_DEAD, true);
	write_unlock(&vm->mmu_lock);
	return 0;
}

static void notifier_end(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct sk_vm *vm = container_of(notifier, struct sk_vm, notifier);

	write_lock(&vm->mmu_lock);
	vm->shared.sequence++;
	vm->shared.running--;
	write_unlock(&vm->mmu_lock);
}

/* All of the process goes, and there is no end of it. */
static void notifier_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct mmu_notifier_range all = { .end = ULONG_MAX };

	notifier_start(notifier, &all);
}

/*
 * Whether the guest has used pages since this was asked last; with no end, only looks. Like Linux for its own TLBs on
 * x86, nobody flushes for it: an entry that is in a TLB looks old for a while.
 */
static int age(struct mmu_notifier *notifier, struct mm_struct *mm, unsigned long start, unsigned long end)
{
	struct sk_vm *vm = container_of(notifier, struct sk_vm, notifier);
	int young;

	read_lock(&vm->mmu_lock);
	young = !!sk_vm_call(vm, sk_core_age, vm->core, start, end);
	read_unlock(&vm->mmu_lock);
	return young;
}

static int notifier_test_young(struct mmu_notifier *notifier, struct mm_struct *mm, unsigned long address)
{
	return age(notifier, mm, address, 0);
}

static const struct mmu_notifier_ops notifier_ops = {
	.clear_flush_young = age,
	.clear_young = age,
	.test_young = notifier_test_young,
	.invalidate_range_start = notifier_start,
	.invalidate_range_end = notifier_end,
	.release = notifier_release,
};

/* Also of one that is not complete. */
static void destroy_vm(struct sk_vm *vm)
{
	if (vm->core)
		sk_call(sk_core_vm_destroy, vm->core, 0, 0);
	cleanup_srcu_struct(&vm->slots_srcu);
	mmdrop(vm->mm);
	free_page((unsigned long)vm->ring);
	kvfree(vm->core);
	kfree(vm);
}

static void vm_free(struct kref *refs)
{
	struct sk_vm *vm = container_of(refs, struct sk_vm, refs);
	struct sk_vcpu *vcpu, *next;

	mutex_lock(&sk_module_lock);
	list_del(&vm->all_vms);
	mutex_unlock(&sk_module_lock);
	debugfs_remove_recursive(vm->debugfs);
	mmu_notifier_unregister(&vm->notifier, vm->mm);
	/* Nothing enters the core by an interrupt any more after these. */
	hrtimer_cancel(&vm->chip_timer);
	sk_irqfds_free(vm);
	list_for_each_entry_safe(vcpu, next, &vm->vcpus, node)
		sk_vcpu_destroy(vcpu);
	destroy_vm(vm);
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
	long result;

	if (vm->mm != current->mm || READ_ONCE(vm->dead))
		return -EIO;
	if (mutex_lock_killable(&vm->lock))
		return -EINTR;
	result = sk_vm_call(vm, sk_core_vm_ioctl, vm->core, command, argument);
	mutex_unlock(&vm->lock);
	return result;
}

static enum hrtimer_restart chip_timer_expired(struct hrtimer *timer)
{
	struct sk_vm *vm = container_of(timer, struct sk_vm, chip_timer);

	sk_vm_call(vm, sk_core_chip_timer, vm->core, 0, 0);
	return HRTIMER_NORESTART;
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
	struct sk_vm *vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	int error, fd;

	if (!vm || init_srcu_struct(&vm->slots_srcu)) {
		kfree(vm);
		return -ENOMEM;
	}
	kref_init(&vm->refs);
	mutex_init(&vm->lock);
	rwlock_init(&vm->mmu_lock);
	INIT_LIST_HEAD(&vm->vcpus);
	raw_spin_lock_init(&vm->irq_lock);
	INIT_LIST_HEAD(&vm->irqfds);
	hrtimer_init(&vm->chip_timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
	vm->chip_timer.function = chip_timer_expired;
	vm->notifier.ops = &notifier_ops;
	vm->mm = current->mm;
	vm->shared.tables = vm->mm->pgd;
	mmgrab(vm->mm);
	vm->ring = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	if (vm->ring)
		vm->core = kvzalloc(sk_call(sk_core_vm_size, 0, 0, 0), GFP_KERNEL_ACCOUNT);
	error = vm->core ? sk_call(sk_core_vm_init, vm->core, vm, vm->ring) : -ENOMEM;
	if (!error)
		error = mmu_notifier_register(&vm->notifier, vm->mm);
	if (error) {
		destroy_vm(vm);
		return error;
	}
	mutex_lock(&sk_module_lock);
	vm->dead = sk_rebooting;
	list_add(&vm->all_vms, &sk_all_vms);
	mutex_unlock(&sk_module_lock);
	sk_vm_debugfs(vm);
	fd = anon_inode_getfd("kvm-vm", &vm_fops, vm, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		sk_vm_put(vm);
	return fd;
}

void sk_synchronize_slots(struct sk_vm *vm)
{
	/* A vCPU stays in its read section while it runs the guest: make each renew it. */
	sk_request_all(vm, SK_REQUEST_RENEW_SLOTS, true);
	synchronize_srcu_expedited(&vm->slots_srcu);
}
