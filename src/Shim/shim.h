/* SPDX-License-Identifier: GPL-2.0-only */
/* The shim: what only C can do for the C# core. It translates; decisions are the core's. */
#ifndef SHARPKVM_SHIM_H
#define SHARPKVM_SHIM_H

#define pr_fmt(fmt) "sharpkvm: " fmt

#include "core.h"

#define SK_VMCS_HOST_RSP	0x6c14

#ifndef __ASSEMBLY__

#include <linux/debugfs.h>
#include <linux/kvm_host.h>	/* and with it what hypervisors need: memory, notifiers, timers, locks */
#include <linux/module.h>
#include <linux/uaccess.h>
#include <asm/fpu/api.h>

#include "compat.h"
#include "cskernel.h"

struct sk_vm {
	/* These two first: SharpKvm.Host.HostVm reads them. */
	struct sk_vm_shared shared;
	struct hrtimer chip_timer;
	struct kref refs;
	struct mm_struct *mm;
	struct mmu_notifier notifier;
	/* Rank 1: one ioctl on the VM at a time; slots change under it. Sleeps. */
	struct mutex lock;
	/* Readers of the memory-slot table. */
	struct srcu_struct slots_srcu;
	/* Rank 3: nested tables; faults are its readers. Taken by the notifier too, so nothing sleeps under it. */
	rwlock_t mmu_lock;
	/* Rank 4: interrupt chips and routes. Interrupts are off under it: irqfds and timers take it in handlers. */
	raw_spinlock_t irq_lock;
	unsigned long irq_flags;
	/* Changed under the lock; who signals resamplers reads it in an SRCU section of slots_srcu. */
	struct list_head irqfds;
	bool dead;
	struct dentry *debugfs;
	/* vCPUs are added under the lock and live until the VM dies. */
	struct list_head vcpus;
	struct list_head all_vms;
	/* The page of coalesced writes, mapped behind each vCPU's port data. */
	void *ring;
	void *core;
};

struct sk_vcpu {
	struct sk_vcpu_shared *shared;	/* first: SharpKvm.Host.HostVcpu reads it; the core's part begins with it */
	struct sk_vm *vm;
	struct list_head node;
	/* Rank 2: one ioctl on the vCPU at a time, KVM_RUN included. Sleeps. */
	struct mutex mutex;
	struct preempt_notifier preempt;
	int cpu;		/* where it was loaded last, -1 before */
	bool in_guest;		/* there; guarded by the order of in_guest and shared->request_bits */
	struct task_struct *task;	/* in KVM_RUN; see sk_vcpu_yield_to() */
	struct rcuwait wait;	/* the thread while it halts */
	struct hrtimer timer;
	bool fpu_loaded;
	bool host_saved;
	/* VMX: whether VMRESUME takes the VMCS and the guest's MSRs are on the CPU, and what the host had. */
	bool launched, has_msrs;
	u8 interrupt;		/* the vector that the last exit acknowledged, or 0 */
	u64 host_cr3, host_cr4, host_debugctl, host_fs_base, host_msrs[5];
	u16 host_ds, host_es, host_fs, host_gs, host_ldt;
	int srcu_index;
	u64 tsc_aux, host_tsc_aux;	/* what the CPU has while loaded, and what it is to have */
	u64 host_xcr0;
	struct fpu_guest fpu;
	void *ring;		/* of written pages, with its length in pages */
	unsigned long ring_pages;
};

extern struct list_head sk_all_vms;
extern struct workqueue_struct *sk_fetches;
extern struct mutex sk_module_lock;
extern bool sk_rebooting;

u64 sk_host_vmcb_pa(void);
void sk_svm_vmrun(struct sk_vcpu_shared *shared, u64 host_vmcb);

/* Whether the CPUs have VMX, not SVM. */
extern bool sk_is_vmx;
/* The vCPU whose VMCS is loaded; of no other has this CPU any part. Changed on the CPU itself, interrupts off. */
DECLARE_PER_CPU(struct sk_vcpu *, sk_vmx_current);
u32 sk_vmx_enter(struct sk_vcpu_shared *shared, bool launched);
void sk_vmx_load(struct sk_vcpu *vcpu, int cpu);
void sk_vmx_prepare(struct sk_vcpu *vcpu);
void sk_vmx_before(struct sk_vcpu *vcpu);
void sk_vmx_run(struct sk_vcpu *vcpu);
void sk_vmx_handle(struct sk_vcpu *vcpu);
void sk_call_handler(unsigned long handler);
void sk_vmx_unload(struct sk_vcpu *vcpu);
void sk_vmx_off(void);

void sk_synchronize_slots(struct sk_vm *vm);
void sk_vm_put(struct sk_vm *vm);
long sk_fault_page(struct sk_vm *vm, unsigned long address, bool write, bool wait);
void sk_vm_debugfs(struct sk_vm *vm);

void sk_vcpu_destroy(struct sk_vcpu *vcpu);
void sk_vcpu_kick(struct sk_vcpu *vcpu, bool post);
void sk_request_all(struct sk_vm *vm, u32 request, bool wait);

void sk_irqfds_free(struct sk_vm *vm);

/* Counted per CPU, for debugfs. */
enum sk_counter { SK_ENTRIES, SK_HOST_SAVES, SK_MSR_WRITES, SK_TLB_FLUSHES, SK_IPIS, SK_COUNTERS };
DECLARE_PER_CPU(u64[SK_COUNTERS], sk_counters);

#define sk_count(counter) this_cpu_inc(sk_counters[counter])

extern struct dentry *sk_debugfs_root;
void sk_debugfs_init(void);

void sk_trapped(struct sk_vm *vm, unsigned long site);

/*
 * Through the door, with up to three arguments, from any context. A trap is reported, and ends the VM on whose behalf
 * the call is; then the answer is -EIO. To C the core's exports are addresses; what they take says Vm/Exports.cs.
 */
static inline long sk_call_core(struct sk_vm *vm, void *fn, long a, long b, long c)
{
	struct cs_result result = cs_enter(fn, a, b, c, 0);

	if (unlikely(result.site))
		sk_trapped(vm, result.site);
	return result.value;
}
#define sk_export(fn) ({ extern const char fn[]; (void *)fn; })
#define sk_vm_call(vm, fn, a, b, c) sk_call_core((vm), sk_export(fn), (long)(a), (long)(b), (long)(c))
#define sk_call(fn, a, b, c) sk_vm_call(NULL, fn, a, b, c)

#endif /* __ASSEMBLY__ */
#endif
