// SPDX-License-Identifier: GPL-2.0-only
/* A vCPU: its file, the run page, KVM_RUN around the core, entry into the guest. */
#include "shim.h"

#include <linux/anon_inodes.h>
#include <linux/entry-kvm.h>
#include <linux/sched/mm.h>
#include <trace/events/ipi.h>
#include <asm/debugreg.h>
#include <asm/fpu/xcr.h>
#include <asm/spec-ctrl.h>

static DEFINE_PER_CPU(struct sk_vcpu *, last_vcpu);
static_assert(offsetof(struct sk_vcpu, shared) == 0);

static void load(struct preempt_notifier *notifier, int cpu)
{
	struct sk_vcpu *vcpu = container_of(notifier, struct sk_vcpu, preempt);
	bool moved = vcpu->cpu != cpu;
	u32 requests = vcpu->shared->on_load | (moved ? SK_REQUEST_MIGRATED : 0);

	if (sk_is_vmx && (moved || this_cpu_read(sk_vmx_current) != vcpu))
		sk_vmx_load(vcpu, cpu);
	if (moved)
		vcpu->host_tsc_aux = vdso_encode_cpunode(cpu, cpu_to_node(cpu));
	WRITE_ONCE(vcpu->cpu, cpu);
	vcpu->shared->run_delay = current->sched_info.run_delay;
	if (requests)
		atomic_or(requests, (atomic_t *)&vcpu->shared->request_bits);
	if (__this_cpu_read(last_vcpu) != vcpu) {
		__this_cpu_write(last_vcpu, vcpu);
		/* No branch prediction that another vCPU trained reaches this one. */
		if (static_cpu_has(X86_FEATURE_USE_IBPB))
			indirect_branch_prediction_barrier();
	}
	vcpu->host_saved = false;
	vcpu->tsc_aux = vcpu->host_tsc_aux;
}

static void set_tsc_aux(struct sk_vcpu *vcpu, u64 value)
{
	if (vcpu->tsc_aux == value)
		return;
	vcpu->tsc_aux = value;
	wrmsrl(MSR_TSC_AUX, value);
	sk_count(SK_MSR_WRITES);
}

static void unload(struct preempt_notifier *notifier, struct task_struct *next)
{
	struct sk_vcpu *vcpu = container_of(notifier, struct sk_vcpu, preempt);

	set_tsc_aux(vcpu, vcpu->host_tsc_aux);
	if (sk_is_vmx)
		sk_vmx_unload(vcpu);
}

static struct preempt_ops preempt_ops = { .sched_in = load, .sched_out = unload };

/* The thread works with the vCPU's hardware state from here, wherever the scheduler takes it, */
static void get(struct sk_vcpu *vcpu)
{
	preempt_disable();
	preempt_notifier_register(&vcpu->preempt);
	load(&vcpu->preempt, smp_processor_id());
	preempt_enable();
}

/* to here. */
static void put(struct sk_vcpu *vcpu)
{
	preempt_disable();
	preempt_notifier_unregister(&vcpu->preempt);
	unload(&vcpu->preempt, NULL);
	preempt_enable();
}

/* A call into the core for the vCPU. A VMCS can be read only where it is loaded; a VMCB is memory like any other. */
static long call_core(struct sk_vcpu *vcpu, void *fn, unsigned long a, unsigned long b)
{
	long result;

	if (sk_is_vmx)
		get(vcpu);
	result = sk_call_core(vcpu->vm, fn, (long)vcpu->shared, a, b);
	if (sk_is_vmx)
		put(vcpu);
	return result;
}

/* Import of the core: the guest's FPU state goes to memory, from where the next entry takes it. */
void sk_vcpu_store_fpu(struct sk_vcpu *vcpu)
{
	if (vcpu->fpu_loaded)
		fpu_swap_kvm_fpstate(&vcpu->fpu, false);
	vcpu->fpu_loaded = false;
}

/* What an entry needs after a load or a change of TSC_AUX; interrupts may be on, preemption is off. */
static void prepare(struct sk_vcpu *vcpu, u64 host_vmcb)
{
	struct sk_vcpu_shared *shared = vcpu->shared;

	if (!vcpu->fpu_loaded) {
		fpu_swap_kvm_fpstate(&vcpu->fpu, true);
		vcpu->fpu_loaded = true;
	}
	if (static_cpu_has(X86_FEATURE_RDTSCP) || static_cpu_has(X86_FEATURE_RDPID))
		set_tsc_aux(vcpu, shared->tsc_aux);
	if (vcpu->host_saved)
		return;
	if (sk_is_vmx)
		sk_vmx_prepare(vcpu);
	else
		asm volatile("vmsave %%rax" : : "a"(host_vmcb) : "memory");
	sk_count(SK_HOST_SAVES);
	vcpu->host_saved = true;
}

static noinstr void svm_run(struct sk_vcpu *vcpu, u64 host_vmcb)
{
	guest_state_enter_irqoff();
	sk_svm_vmrun(vcpu->shared, host_vmcb);
	guest_state_exit_irqoff();
}

/* Import of the core: one turn of the guest. 0: it ran and left; 1: something must be looked at first. */
long sk_vcpu_enter(struct sk_vcpu *vcpu)
{
	struct sk_vcpu_shared *shared = vcpu->shared;
	u64 host_vmcb;
	u32 host_pkru = 0;
	bool xcr0 = (shared->flags & SK_ENTER_XCR0) && shared->xcr0 != vcpu->host_xcr0;
	bool pkru = cpu_feature_enabled(X86_FEATURE_OSPKE) && (shared->flags & SK_ENTER_PKRU);

	preempt_disable();
	host_vmcb = sk_is_vmx ? 0 : sk_host_vmcb_pa();
	if (unlikely(!vcpu->host_saved || !vcpu->fpu_loaded || vcpu->tsc_aux != shared->tsc_aux))
		prepare(vcpu, host_vmcb);
	local_irq_disable();
	xfer_to_guest_mode_prepare();
	if (sk_is_vmx)
		sk_vmx_before(vcpu);
	/* Full barrier between in_guest and the look at the requests; see sk_request_all(). */
	smp_store_mb(vcpu->in_guest, true);
	if (READ_ONCE(shared->request_bits) || xfer_to_guest_mode_work_pending()) {
		WRITE_ONCE(vcpu->in_guest, false);
		local_irq_enable();
		preempt_enable();
		return 1;
	}
	if (test_thread_flag(TIF_NEED_FPU_LOAD))
		switch_fpu_return();
	if (xcr0)
		xsetbv(XCR_XFEATURE_ENABLED_MASK, shared->xcr0);
	if (pkru) {
		host_pkru = rdpkru();
		if (host_pkru != shared->pkru)
			wrpkru(shared->pkru);
	}
	if (unlikely(shared->flags & SK_ENTER_LOAD_DEBUG_REGISTERS)) {
		set_debugreg(0, 7);
		set_debugreg(shared->dr[0], 0);
		set_debugreg(shared->dr[1], 1);
		set_debugreg(shared->dr[2], 2);
		set_debugreg(shared->dr[3], 3);
	}
	if (unlikely(shared->flags & SK_ENTER_FLUSHES))
		sk_count(SK_TLB_FLUSHES);
	guest_timing_enter_irqoff();
	if (sk_is_vmx)
		sk_vmx_run(vcpu);
	else
		svm_run(vcpu, host_vmcb);
	/* The guest may have trained predictions for the process it belongs to (VMSCAPE). */
	if (cpu_feature_enabled(X86_FEATURE_IBPB_EXIT_TO_USER))
		this_cpu_write(x86_ibpb_exit_to_user, true);
	if (pkru) {
		shared->pkru = rdpkru();
		if (host_pkru != shared->pkru)
			wrpkru(host_pkru);
	}
	if (xcr0)
		xsetbv(XCR_XFEATURE_ENABLED_MASK, vcpu->host_xcr0);
	/* An exit clears DR7; the host's own breakpoints come back. */
	if (hw_breakpoint_active())
		hw_breakpoint_restore();
	WRITE_ONCE(vcpu->in_guest, false);
	if (unlikely(vcpu->interrupt))
		sk_vmx_handle(vcpu);
	/* A physical interrupt that ended the guest's turn is taken here, still accounted to the guest. */
	local_irq_enable();
	/* STI holds interrupts off for one instruction. */
	sk_count(SK_ENTRIES);
	local_irq_disable();
	guest_timing_exit_irqoff();
	local_irq_enable();
	preempt_enable();
	return 0;
}

/*
 * xfer_to_guest_mode_handle_work() notes a signal in KVM's own structure. The core notes it where it belongs, so what
 * is written here by any number of threads is never read.
 */
static struct kvm_run signal_run;
static struct kvm_vcpu signal_vcpu = { .run = &signal_run };

/*
 * Import of the core: signals, rescheduling and task work before an entry. 0 or -EINTR. Lets those pass who wait for
 * the end of a memory-slot table.
 */
long sk_vcpu_work(struct sk_vcpu *vcpu)
{
	long result;

	srcu_read_unlock(&vcpu->vm->slots_srcu, vcpu->srcu_index);
	result = xfer_to_guest_mode_handle_work(&signal_vcpu);
	vcpu->srcu_index = srcu_read_lock(&vcpu->vm->slots_srcu);
	return result;
}

/*
 * Import of the core; the requests were set before, by an atomic operation. See sk_request_all() for the order. Post:
 * the CPU takes posted interrupts in the guest; one that has left it finds the request.
 */
void sk_vcpu_kick(struct sk_vcpu *vcpu, bool post)
{
	int cpu;

	if (rcuwait_wake_up(&vcpu->wait))
		return;
	preempt_disable();
	cpu = READ_ONCE(vcpu->cpu);
	if (READ_ONCE(vcpu->in_guest) && cpu != smp_processor_id()) {
		sk_count(SK_IPIS);
		if (post)
			sk_send_posted(cpu);
		else
			smp_send_reschedule(cpu);
	}
	preempt_enable();
}

/* Import of the core: the thread sleeps until there is a request (SharpKvm.Host.HaltEnd says what it returns). */
int sk_vcpu_halt(struct sk_vcpu *vcpu, u64 poll_end)
{
	u32 *requests = &vcpu->shared->request_bits;
	int result;

	while (poll_end && !need_resched() && single_task_running() && ktime_get() < poll_end) {
		if (READ_ONCE(*requests))
			return 0;
		cpu_relax();
	}
	srcu_read_unlock(&vcpu->vm->slots_srcu, vcpu->srcu_index);
	result = rcuwait_wait_event(&vcpu->wait, READ_ONCE(*requests), TASK_INTERRUPTIBLE);
	vcpu->srcu_index = srcu_read_lock(&vcpu->vm->slots_srcu);
	return result ? 2 : 1;
}

/*
 * Import of the core: directed yield. The task takes its pointer back before it can exit, and its memory outlives the
 * grace period after that.
 */
void sk_vcpu_yield_to(struct sk_vcpu *vcpu)
{
	struct task_struct *task;

	rcu_read_lock();
	task = get_task_struct(READ_ONCE(vcpu->task) ?: current);
	rcu_read_unlock();
	yield_to(task, true);
	put_task_struct(task);
}

static enum hrtimer_restart timer_expired(struct hrtimer *timer)
{
	struct sk_vcpu *vcpu = container_of(timer, struct sk_vcpu, timer);

	atomic_or(SK_REQUEST_TIMER, (atomic_t *)&vcpu->shared->request_bits);
	sk_vcpu_kick(vcpu, false);
	return HRTIMER_NORESTART;
}

/* A page that is fetched while its vCPU runs on. Holds the VM and its memory; the module goes after the work queue. */
struct sk_fetch {
	struct work_struct work;
	struct sk_vcpu *vcpu;
	unsigned long page;
	u32 number;
	bool write;
};

struct workqueue_struct *sk_fetches;

static void fetch_page(struct work_struct *work)
{
	struct sk_fetch *fetch = container_of(work, struct sk_fetch, work);
	struct sk_vm *vm = fetch->vcpu->vm;

	sk_fault_page(vm, fetch->page, fetch->write, true);
	sk_vm_call(vm, sk_core_page_fetched, fetch->vcpu->shared, fetch->number, 0);
	mmput(vm->mm);
	sk_vm_put(vm);
	kfree(fetch);
}

/* Import of the core. */
u32 sk_vcpu_fetch_page(struct sk_vcpu *vcpu, unsigned long page, bool write, u32 number)
{
	struct sk_fetch *fetch = kmalloc(sizeof(*fetch), GFP_KERNEL_ACCOUNT);

	if (!fetch)
		return false;
	*fetch = (struct sk_fetch){ .vcpu = vcpu, .page = page, .number = number, .write = write };
	INIT_WORK(&fetch->work, fetch_page);
	kref_get(&vcpu->vm->refs);
	mmget(vcpu->vm->mm);
	return queue_work(sk_fetches, &fetch->work);
}

/* Import of the core, before the vCPU's file exists. User space maps the ring page by page. */
void *sk_vcpu_allocate_ring(struct sk_vcpu *vcpu, unsigned long bytes)
{
	vcpu->ring = __vmalloc(bytes, GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	vcpu->ring_pages = vcpu->ring ? bytes >> PAGE_SHIFT : 0;
	return vcpu->ring;
}

/*
 * KVM_RUN around the core. Everything the core's thread holds while it runs the guest is taken and given back here, so
 * that a trap in the core leaves nothing behind.
 */
static long run(struct sk_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->shared->run;
	struct sk_vm *vm = vcpu->vm;
	long result;

	/* Who sends a deadly signal looks here whether it would be taken: one that is blocked outside kills nobody. */
	if (vcpu->shared->masks_signals)
		sigprocmask(SIG_SETMASK, (sigset_t *)&vcpu->shared->signal_mask, &current->real_blocked);
	get(vcpu);
	WRITE_ONCE(vcpu->task, current);

	result = sk_vm_call(vm, sk_core_run, vcpu->shared, 0, 0);

	WRITE_ONCE(vcpu->task, NULL);
	sk_vcpu_store_fpu(vcpu);
	put(vcpu);
	if (vcpu->shared->masks_signals) {
		sigprocmask(SIG_SETMASK, &current->real_blocked, NULL);
		sigemptyset(&current->real_blocked);
	}

	if (unlikely(READ_ONCE(vm->dead))) {
		run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
		run->internal.suberror = KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON;
		run->internal.ndata = 0;
		return 0;
	}
	return result;
}

static long vcpu_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct sk_vcpu *vcpu = file->private_data;
	long result;

	if (vcpu->vm->mm != current->mm || READ_ONCE(vcpu->vm->dead))
		return -EIO;
	if (unlikely(_IOC_TYPE(command) != KVMIO))
		return -EINVAL;
	if (mutex_lock_killable(&vcpu->mutex))
		return -EINTR;
	vcpu->srcu_index = srcu_read_lock(&vcpu->vm->slots_srcu);
	if (command != KVM_RUN)
		result = call_core(vcpu, sk_export(sk_core_vcpu_ioctl), command, argument);
	else
		result = argument ? -EINVAL : run(vcpu);
	srcu_read_unlock(&vcpu->vm->slots_srcu, vcpu->srcu_index);
	mutex_unlock(&vcpu->mutex);
	return result;
}

static vm_fault_t vcpu_fault(struct vm_fault *fault)
{
	struct sk_vcpu *vcpu = fault->vma->vm_file->private_data;
	void *address;

	if (fault->pgoff <= KVM_PIO_PAGE_OFFSET)
		address = (void *)vcpu->shared->run + fault->pgoff * PAGE_SIZE;
	else if (fault->pgoff == KVM_COALESCED_MMIO_PAGE_OFFSET)
		address = vcpu->vm->ring;
	else if (fault->pgoff >= KVM_DIRTY_LOG_PAGE_OFFSET &&
		 fault->pgoff - KVM_DIRTY_LOG_PAGE_OFFSET < vcpu->ring_pages)
		address = vcpu->ring + (fault->pgoff - KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE;
	else
		return VM_FAULT_SIGBUS;
	fault->page = is_vmalloc_addr(address) ? vmalloc_to_page(address) : virt_to_page(address);
	get_page(fault->page);
	return 0;
}

static const struct vm_operations_struct vcpu_vm_ops = { .fault = vcpu_fault };

static int vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct sk_vcpu *vcpu = file->private_data;

	/* The dirty ring is for both sides to write to, or for nobody. */
	if (vma->vm_pgoff < KVM_DIRTY_LOG_PAGE_OFFSET + vcpu->ring_pages &&
	    vma->vm_pgoff + vma_pages(vma) > KVM_DIRTY_LOG_PAGE_OFFSET && vcpu->ring_pages &&
	    (vma->vm_flags & (VM_EXEC | VM_SHARED)) != VM_SHARED)
		return -EINVAL;
	vma->vm_ops = &vcpu_vm_ops;
	return 0;
}

static int vcpu_release(struct inode *inode, struct file *file)
{
	struct sk_vcpu *vcpu = file->private_data;

	sk_vm_put(vcpu->vm);
	return 0;
}

static const struct file_operations vcpu_fops = {
	.owner = THIS_MODULE,
	.release = vcpu_release,
	.unlocked_ioctl = vcpu_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = vcpu_mmap,
	.llseek = noop_llseek,
};

/* Also of one that is not complete. */
void sk_vcpu_destroy(struct sk_vcpu *vcpu)
{
	int cpu;

	list_del(&vcpu->node);
	hrtimer_cancel(&vcpu->timer);
	for_each_possible_cpu(cpu)
		cmpxchg(per_cpu_ptr(&last_vcpu, cpu), vcpu, NULL);
	if (vcpu->shared) {
		sk_call(sk_core_vcpu_destroy, vcpu->shared, 0, 0);
		if (vcpu->shared->run)
			free_pages_exact(vcpu->shared->run, 2 * PAGE_SIZE);
	}
	kvfree(vcpu->shared);
	vfree(vcpu->ring);
	fpu_free_guest_fpstate(&vcpu->fpu);
	kfree(vcpu);
}

/* What the core finds in its part. */
static int allocate(struct sk_vcpu *vcpu)
{
	struct sk_vcpu_shared *shared = kvzalloc(sk_call(sk_core_vcpu_size, 0, 0, 0), GFP_KERNEL_ACCOUNT);

	vcpu->shared = shared;
	if (!shared || !fpu_alloc_guest_fpstate(&vcpu->fpu))
		return -ENOMEM;
	/* Without XSAVE it is what the guest has, and never another. */
	vcpu->host_xcr0 = static_cpu_has(X86_FEATURE_OSXSAVE) ? xgetbv(XCR_XFEATURE_ENABLED_MASK) : 1;
	/* The run page, and behind it the one for port data. */
	shared->run = alloc_pages_exact(2 * PAGE_SIZE, GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	shared->port = (void *)shared->run + KVM_PIO_PAGE_OFFSET * PAGE_SIZE;
	shared->host = vcpu;
	shared->fpu = &vcpu->fpu;
	shared->timer = &vcpu->timer;
	shared->xsave = &vcpu->fpu.fpstate->regs.xsave;
	shared->xsave_size = max_t(u32, vcpu->fpu.uabi_size, sizeof(struct kvm_xsave));
	return shared->run ? 0 : -ENOMEM;
}

/* Import of the core: KVM_CREATE_VCPU, with the VM's lock held; the core has checked the id. Returns a file. */
long sk_create_vcpu(struct sk_vm *vm, u32 id)
{
	struct sk_vcpu *vcpu = kzalloc(sizeof(*vcpu), GFP_KERNEL_ACCOUNT);
	char name[24];
	int fd;

	if (!vcpu)
		return -ENOMEM;
	vcpu->vm = vm;
	vcpu->cpu = -1;
	INIT_LIST_HEAD(&vcpu->node);
	mutex_init(&vcpu->mutex);
	rcuwait_init(&vcpu->wait);
	hrtimer_init(&vcpu->timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_PINNED_HARD);
	vcpu->timer.function = timer_expired;
	preempt_notifier_init(&vcpu->preempt, &preempt_ops);
	fd = allocate(vcpu) ?: call_core(vcpu, sk_export(sk_core_vcpu_init), (unsigned long)vm->core, id);
	if (fd)
		goto destroy;
	snprintf(name, sizeof(name), "kvm-vcpu:%u", id);
	/* The file's release drops the reference; whoever guesses its number waits until others find the vCPU, too. */
	kref_get(&vm->refs);
	mutex_lock(&vcpu->mutex);
	fd = anon_inode_getfd(name, &vcpu_fops, vcpu, O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		list_add_tail_rcu(&vcpu->node, &vm->vcpus);
		sk_vm_call(vm, sk_core_vcpu_show, vcpu->shared, 0, 0);
	}
	mutex_unlock(&vcpu->mutex);
	if (fd >= 0)
		return fd;
	sk_vm_put(vm);
destroy:
	sk_vcpu_destroy(vcpu);
	return fd;
}
