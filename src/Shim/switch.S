/* SPDX-License-Identifier: GPL-2.0-only */
/* The world switches: AMD SVM (APM vol. 2, 15.5) and Intel VMX (SDM vol. 3, chapters 27 and 28). */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include <asm/unwind_hints.h>

#include "compat.h"
#include "shim.h"

/* Offsets of the general registers, which are in the order of their numbers. */
	.set at, 0
	.irp register, rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
	.set at_\register, at
	.set at, at + 8
	.endr

	.macro PUSH_HOST
	.irp register, rbp, r15, r14, r13, r12, rbx, rsi, rdi
	push	%\register
	.endr
	.endm

	.macro POP_HOST
	.irp register, rdi, rsi, rbx, r12, r13, r14, r15, rbp
	pop	%\register
	.endr
	.endm

/* The guest's registers but RAX, RSP and, last, RDI, through which they are reached. Flags stay as they are. */
	.macro LOAD_GUEST
	.irp register, rcx, rdx, rbx, rbp, rsi, r8, r9, r10, r11, r12, r13, r14, r15, rdi
	mov	at_\register(%rdi), %\register
	.endr
	.endm

/* The same back, through RAX. */
	.macro SAVE_GUEST
	.irp register, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
	mov	%\register, at_\register(%rax)
	.endr
	.endm

/* SPEC_CTRL is switched here, before any RET or indirect branch of the host. */
	.macro LOAD_SPEC_CTRL done
	ALTERNATIVE_2 "jmp \done", "", X86_FEATURE_MSR_SPEC_CTRL, "jmp \done", X86_FEATURE_V_SPEC_CTRL
	mov	SK_VCPU_SHARED_SPEC_CTRL(%rdi), %eax
	cmp	PER_CPU_VAR(x86_spec_ctrl_current), %eax
	je	\done
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	xor	%edx, %edx
	wrmsr
\done:
	.endm

/* With IBRS in the kernel the write itself is the barrier, whatever the guest's value. */
	.macro SAVE_SPEC_CTRL done
	ALTERNATIVE_2 "jmp \done", "", X86_FEATURE_MSR_SPEC_CTRL, "jmp \done", X86_FEATURE_V_SPEC_CTRL
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	rdmsr
	mov	%eax, SK_VCPU_SHARED_SPEC_CTRL(%rdi)
	ALTERNATIVE "", "jmp 1f", X86_FEATURE_KERNEL_IBRS
	cmp	PER_CPU_VAR(x86_spec_ctrl_current), %eax
	je	\done
1:	mov	PER_CPU_VAR(x86_spec_ctrl_current), %rax
	mov	%rax, %rdx
	shr	$32, %rdx
	wrmsr
\done:
	.endm

/* No guest value stays in a register that speculation could use. RAX and RDI are the host's by now. */
	.macro CLEAR_GUEST registers:vararg
	.irp register, \registers
	xor	%\register, %\register
	.endr
	.endm

	.section .noinstr.text, "ax"

/*
 * void sk_svm_vmrun(struct sk_vcpu_shared *shared, u64 host_vmcb)
 *
 * Interrupts are off. VMLOAD/VMSAVE carry FS, GS, TR, LDTR and the SYSCALL and SYSENTER MSRs both ways; RAX, RSP,
 * RIP and RFLAGS are in the VMCB.
 */
SYM_FUNC_START(sk_svm_vmrun)
	PUSH_HOST
	clgi
	LOAD_SPEC_CTRL .Lsvm_spec_loaded
	mov	SK_VCPU_SHARED_CONTROL_BLOCK(%rdi), %rax
	vmload	%rax
	LOAD_GUEST
	/* Nothing of the host stays in buffers that the guest could sample. */
	VM_CLEAR_CPU_BUFFERS
	/* With GIF clear the interrupt flag only says that physical interrupts end the guest's turn. */
	sti
	vmrun	%rax
	cli

	vmsave	%rax
	mov	(%rsp), %rax
	SAVE_GUEST
	mov	%rax, %rdi
	mov	8(%rsp), %rax
	vmload	%rax

	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RETPOLINE
	SAVE_SPEC_CTRL .Lsvm_spec_saved
	CLEAR_GUEST ecx, edx, ebx, ebp, esi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
	SK_UNTRAIN_RET
	stgi
	POP_HOST
	RET
SYM_FUNC_END(sk_svm_vmrun)

/*
 * u32 sk_vmx_enter(struct sk_vcpu_shared *shared, bool launched)
 *
 * Interrupts are off and the VMCS is current. It has RSP, RIP and RFLAGS, and the host's state but RSP. Returns whether
 * the guest was not entered for want of a valid VMCS; all else that goes wrong is an exit.
 */
SYM_FUNC_START(sk_vmx_enter)
	PUSH_HOST
	/* The answer, until an exit says otherwise. */
	push	$1
	LOAD_SPEC_CTRL .Lvmx_spec_loaded
	mov	$SK_VMCS_HOST_RSP, %eax
	vmwrite	%rsp, %rax
	mov	SK_VCPU_SHARED_CR2(%rdi), %rax
	mov	%cr2, %rcx
	cmp	%rax, %rcx
	je	1f
	mov	%rax, %cr2
1:	mov	at_rax(%rdi), %rax
	/* Carry tells: the loads below leave it alone, and VERW changes ZF only. */
	bt	$0, %esi
	LOAD_GUEST
	VM_CLEAR_CPU_BUFFERS
	UNWIND_HINT_SAVE
	jc	.Lresume
	vmlaunch
	jmp	.Lleft
.Lresume:
	vmresume
	jmp	.Lleft

SYM_INNER_LABEL(sk_vmx_exit, SYM_L_GLOBAL)
	UNWIND_HINT_RESTORE
	ENDBR
	movq	$0, (%rsp)
.Lleft:
	push	%rax
	mov	16(%rsp), %rax
	SAVE_GUEST
	popq	at_rax(%rax)
	mov	%rax, %rdi
	mov	%cr2, %rax
	mov	%rax, SK_VCPU_SHARED_CR2(%rdi)

	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, X86_FEATURE_RSB_VMEXIT_LITE
	SAVE_SPEC_CTRL .Lvmx_spec_saved
	CLEAR_BRANCH_HISTORY_VMEXIT
	/* The host's values of the others come at once. */
	CLEAR_GUEST ecx, edx, r8d, r9d, r10d, r11d
	pop	%rax
	POP_HOST
	RET
SYM_FUNC_END(sk_vmx_enter)

	.text

/*
 * void sk_call_handler(unsigned long handler)
 *
 * Calls an interrupt handler, interrupts off, with the frame that the CPU would have pushed (SDM vol. 3, 6.14.2); its
 * IRET comes back here.
 */
SYM_FUNC_START(sk_call_handler)
	push	%rbp
	mov	%rsp, %rbp
	and	$-16, %rsp
	push	$__KERNEL_DS
	push	%rbp
	pushf
	push	$__KERNEL_CS
	CALL_NOSPEC rdi
	mov	%rbp, %rsp
	pop	%rbp
	RET
SYM_FUNC_END(sk_call_handler)
