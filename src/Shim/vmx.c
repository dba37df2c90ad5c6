// SPDX-License-Identifier: GPL-2.0-only
/* Intel VMX: a VMCS's life on a CPU, and the state of the host that the CPU does not switch by itself. */
#include "shim.h"

#include <asm/cpu_entry_area.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/fsgsbase.h>
#include <asm/mmu_context.h>
#include <asm/tlbflush.h>

/* Fields of the VMCS (SDM vol. 3, appendix B). */
enum {
	EXIT_REASON = 0x4402, EXIT_INTERRUPTION = 0x4404, HOST_CR3 = 0x6c02, HOST_CR4 = 0x6c04, HOST_FS_BASE = 0x6c06,
	HOST_GS_BASE = 0x6c08, HOST_TR_BASE = 0x6c0a, HOST_GDTR_BASE = 0x6c0c, HOST_IDTR_BASE = 0x6c0e,
	HOST_SYSENTER_ESP = 0x6c10, HOST_RIP = 0x6c16,
};

#define ENTRY_FAILED		(1u << 31)
/* Types and vectors of EXIT_INTERRUPTION. */
#define EVENT_MASK		0x800007ffu
#define EVENT_NMI		0x80000202u
#define EVENT_MACHINE_CHECK	0x80000312u
#define EVENT_VALID		0x80000000u

#define REASON_INTERRUPT	1

bool sk_is_vmx;
extern const char sk_vmx_exit[];

DEFINE_PER_CPU(struct sk_vcpu *, sk_vmx_current);

/* The core knows these by their values. */
#ifdef POSTED_INTR_VECTOR
static_assert(SK_POSTED_VECTOR == POSTED_INTR_VECTOR);
#endif
static_assert(__KERNEL_CS == 0x10 && __KERNEL_DS == 0x18 && GDT_ENTRY_TSS * 8 == 0x40);

static const u32 syscall_msrs[] = { MSR_STAR, MSR_LSTAR, MSR_SYSCALL_MASK, MSR_KERNEL_GS_BASE, MSR_EFER };

static __always_inline void vmwrite(unsigned long field, unsigned long value)
{
	asm volatile("vmwrite %1, %0" : : "r"(field), "rm"(value) : "cc");
}

static __always_inline unsigned long vmread(unsigned long field)
{
	unsigned long value;

	asm volatile("vmread %1, %0" : "=r"(value) : "r"(field) : "cc");
	return value;
}

static void vmclear(u64 address)
{
	asm volatile("vmclear %0" : : "m"(address) : "cc", "memory");
}

/* On the CPU itself, interrupts off: if the vCPU's VMCS is loaded there, all of it goes to memory. */
static void forget(void *argument)
{
	struct sk_vcpu *vcpu = argument;

	if (!vcpu || this_cpu_read(sk_vmx_current) != vcpu)
		return;
	vcpu->launched = false;
	vmclear(vcpu->shared->control_block);
	this_cpu_write(sk_vmx_current, NULL);
}

/* Import of the core, from anywhere but interrupt handlers. */
void sk_vmx_forget(struct sk_vcpu *vcpu)
{
	if (vcpu->cpu >= 0 && READ_ONCE(per_cpu(sk_vmx_current, vcpu->cpu)) == vcpu)
		smp_call_function_single(vcpu->cpu, forget, vcpu, 1);
}

/* Import of the core, and in a crash: no other kernel finds this one's control blocks written to behind its back. */
void sk_vmx_off(void)
{
	if (!(__read_cr4() & X86_CR4_VMXE))
		return;
	forget(this_cpu_read(sk_vmx_current));
	asm volatile("1: vmxoff\n2:" _ASM_EXTABLE(1b, 2b) : : : "cc", "memory");
	cr4_clear_bits(X86_CR4_VMXE);
}

/* Makes the VMCS the one of this CPU. Preemption is off, vcpu->cpu says where it was. */
void sk_vmx_load(struct sk_vcpu *vcpu, int cpu)
{
	u64 address = vcpu->shared->control_block;

	/* The core has not made it yet, or the CPU or machine goes down. */
	if (!address || !(cr4_read_shadow() & X86_CR4_VMXE))
		return;
	if (vcpu->cpu != cpu)
		sk_vmx_forget(vcpu);
	if (this_cpu_read(sk_vmx_current) == vcpu)
		return;
	local_irq_disable();
	forget(this_cpu_read(sk_vmx_current));
	vmclear(address);
	asm volatile("vmptrld %0" : : "m"(address) : "cc", "memory");
	this_cpu_write(sk_vmx_current, vcpu);
	/* What the host gets back at each exit, as far as the core has not written it. */
	vmwrite(HOST_RIP, (unsigned long)sk_vmx_exit);
	vmwrite(HOST_IDTR_BASE, CPU_ENTRY_AREA_RO_IDT);
	vmwrite(HOST_TR_BASE, (unsigned long)&get_cpu_entry_area(cpu)->tss.x86_tss);
	vmwrite(HOST_GDTR_BASE, (unsigned long)get_current_gdt_ro());
	vmwrite(HOST_GS_BASE, cpu_kernelmode_gs_base(cpu));
	vmwrite(HOST_SYSENTER_ESP, (unsigned long)(cpu_entry_stack(cpu) + 1));
	local_irq_enable();
}

/* Guest and host often have the same value. */
static __always_inline void set_syscall_msr(struct sk_vcpu *vcpu, int i, u64 value)
{
	if (vcpu->shared->syscall_msrs[i] == vcpu->host_msrs[i])
		return;
	wrmsrl(syscall_msrs[i], value);
	sk_count(SK_MSR_WRITES);
}

/* The thread's state goes to where sk_vmx_unload() finds it, the guest's MSRs come. Preemption is off. */
void sk_vmx_prepare(struct sk_vcpu *vcpu)
{
	int i;

	savesegment(ds, vcpu->host_ds);
	savesegment(es, vcpu->host_es);
	savesegment(fs, vcpu->host_fs);
	savesegment(gs, vcpu->host_gs);
	store_ldt(vcpu->host_ldt);
	vcpu->host_debugctl = __rdmsr(MSR_IA32_DEBUGCTLMSR);
	vcpu->host_fs_base = x86_fsbase_read_cpu();
	vmwrite(HOST_FS_BASE, vcpu->host_fs_base);
	vcpu->has_msrs = vcpu->shared->flags & SK_ENTER_SYSCALLS;
	for (i = 0; vcpu->has_msrs && i < ARRAY_SIZE(syscall_msrs); i++) {
		/* All but this one are the same at all times and on all CPUs, and not 0. */
		if (!vcpu->host_msrs[i] || syscall_msrs[i] == MSR_KERNEL_GS_BASE)
			rdmsrl(syscall_msrs[i], vcpu->host_msrs[i]);
		set_syscall_msr(vcpu, i, vcpu->shared->syscall_msrs[i]);
	}
}

void sk_vmx_unload(struct sk_vcpu *vcpu)
{
	int i;

	if (!vcpu->host_saved)
		return;
	vcpu->host_saved = false;
	/* SWAPGS changes it without an exit; the others change with one. */
	if (vcpu->has_msrs)
		rdmsrl(MSR_KERNEL_GS_BASE, vcpu->shared->syscall_msrs[3]);
	/* An exit leaves all selectors at 0, as most threads have them. */
	if (unlikely(vcpu->host_ds | vcpu->host_es | vcpu->host_fs | vcpu->host_gs | vcpu->host_ldt)) {
		asm volatile("lldt %0" : : "r"(vcpu->host_ldt));
		loadsegment(ds, vcpu->host_ds);
		loadsegment(es, vcpu->host_es);
		loadsegment(fs, vcpu->host_fs);
		x86_fsbase_write_cpu(vcpu->host_fs_base);
		load_gs_index(vcpu->host_gs);
	}
	for (i = 0; vcpu->has_msrs && i < ARRAY_SIZE(syscall_msrs); i++)
		set_syscall_msr(vcpu, i, vcpu->host_msrs[i]);
	/* It leaves the limits of GDT and TSS at other values than Linux's, too. */
	load_fixmap_gdt(raw_smp_processor_id());
	invalidate_tss_limit();
}

/*
 * Import of the core: the control block, if it is new, is loaded, and shared->syscall_msrs is what the guest has, and
 * what it gets with the next entry.
 */
void sk_vmx_reload(struct sk_vcpu *vcpu)
{
	preempt_disable();
	sk_vmx_unload(vcpu);
	sk_vmx_load(vcpu, vcpu->cpu);
	preempt_enable();
}

/* Before each entry, interrupts off: what of the host may have changed. */
void sk_vmx_before(struct sk_vcpu *vcpu)
{
	unsigned long cr3 = __get_current_cr3_fast(), cr4 = cr4_read_shadow();

	if (vcpu->host_cr3 != cr3)
		vmwrite(HOST_CR3, vcpu->host_cr3 = cr3);
	if (vcpu->host_cr4 != cr4)
		vmwrite(HOST_CR4, vcpu->host_cr4 = cr4);
}

static __always_inline void run(struct sk_vcpu *vcpu)
{
	struct sk_vcpu_shared *shared = vcpu->shared;
	u32 event;

	/* The guest could read by L1TF what the host has touched. */
	if (static_cpu_has_bug(X86_BUG_L1TF) && static_cpu_has(X86_FEATURE_FLUSH_L1D))
		native_wrmsrl(MSR_IA32_FLUSH_CMD, L1D_FLUSH);
	shared->exit_reason = sk_vmx_enter(shared, vcpu->launched) ? ~0u : vmread(EXIT_REASON);
	if (unlikely(vcpu->host_debugctl))
		native_wrmsrl(MSR_IA32_DEBUGCTLMSR, vcpu->host_debugctl);
	if (unlikely(shared->exit_reason & ENTRY_FAILED))
		return;
	vcpu->launched = true;
	if (shared->exit_reason > REASON_INTERRUPT)
		return;
	/* The host's own events that ended the guest's turn. */
	event = vmread(EXIT_INTERRUPTION) & EVENT_MASK;
	if (shared->exit_reason == REASON_INTERRUPT && event & EVENT_VALID)
		vcpu->interrupt = event;
	/* The exit has blocked NMIs, as one does; the handler's IRET unblocks them. */
	if (event == EVENT_NMI)
		asm volatile("int $2");
	else if (event == EVENT_MACHINE_CHECK)
		asm volatile("int $18");
}

/* With posted interrupts an exit acknowledges the interrupt that made it, so its handler is called by hand. */
void sk_vmx_handle(struct sk_vcpu *vcpu)
{
	const gate_desc *idt = (void *)CPU_ENTRY_AREA_RO_IDT;

	sk_call_handler(gate_offset(&idt[vcpu->interrupt]));
	vcpu->interrupt = 0;
}

noinstr void sk_vmx_run(struct sk_vcpu *vcpu)
{
	guest_state_enter_irqoff();
	run(vcpu);
	guest_state_exit_irqoff();
}
