/* SPDX-License-Identifier: GPL-2.0-only */
/* The world switch of AMD SVM (APM vol. 2, 15.5). */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>

#include "compat.h"
#include "shim.h"

#define GPR(n) (8 * (n))

	.section .noinstr.text, "ax"

/*
 * void sk_svm_vmrun(struct sk_vcpu_shared *shared, u64 host_vmcb)
 *
 * Interrupts are off. VMLOAD/VMSAVE carry FS, GS, TR, LDTR and the SYSCALL and SYSENTER MSRs both ways; RAX, RSP,
 * RIP and RFLAGS are in the VMCB. SPEC_CTRL is switched here, before any RET or indirect branch of the host.
 */
SYM_FUNC_START(sk_svm_vmrun)
	push	%rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx
	push	%rsi
	push	%rdi

	clgi
	ALTERNATIVE "jmp .Lspec_loaded", "", X86_FEATURE_MSR_SPEC_CTRL
	ALTERNATIVE "", "jmp .Lspec_loaded", X86_FEATURE_V_SPEC_CTRL
	mov	SK_SHARED_SPEC_CTRL(%rdi), %eax
	cmp	PER_CPU_VAR(x86_spec_ctrl_current), %eax
	je	.Lspec_loaded
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	xor	%edx, %edx
	wrmsr
.Lspec_loaded:
	mov	SK_SHARED_CONTROL_BLOCK(%rdi), %rax
	vmload	%rax
	mov	GPR(1)(%rdi), %rcx
	mov	GPR(2)(%rdi), %rdx
	mov	GPR(3)(%rdi), %rbx
	mov	GPR(5)(%rdi), %rbp
	mov	GPR(6)(%rdi), %rsi
	mov	GPR(8)(%rdi), %r8
	mov	GPR(9)(%rdi), %r9
	mov	GPR(10)(%rdi), %r10
	mov	GPR(11)(%rdi), %r11
	mov	GPR(12)(%rdi), %r12
	mov	GPR(13)(%rdi), %r13
	mov	GPR(14)(%rdi), %r14
	mov	GPR(15)(%rdi), %r15
	mov	GPR(7)(%rdi), %rdi

	/* Nothing of the host stays in buffers that the guest could sample. */
	VM_CLEAR_CPU_BUFFERS
	/* With GIF clear the interrupt flag only says that physical interrupts end the guest's turn. */
	sti
	vmrun	%rax
	cli

	vmsave	%rax
	mov	(%rsp), %rax
	mov	%rcx, GPR(1)(%rax)
	mov	%rdx, GPR(2)(%rax)
	mov	%rbx, GPR(3)(%rax)
	mov	%rbp, GPR(5)(%rax)
	mov	%rsi, GPR(6)(%rax)
	mov	%rdi, GPR(7)(%rax)
	mov	%r8, GPR(8)(%rax)
	mov	%r9, GPR(9)(%rax)
	mov	%r10, GPR(10)(%rax)
	mov	%r11, GPR(11)(%rax)
	mov	%r12, GPR(12)(%rax)
	mov	%r13, GPR(13)(%rax)
	mov	%r14, GPR(14)(%rax)
	mov	%r15, GPR(15)(%rax)
	mov	%rax, %rdi
	mov	8(%rsp), %rax
	vmload	%rax

	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RETPOLINE

	ALTERNATIVE "jmp .Lspec_saved", "", X86_FEATURE_MSR_SPEC_CTRL
	ALTERNATIVE "", "jmp .Lspec_saved", X86_FEATURE_V_SPEC_CTRL
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	rdmsr
	mov	%eax, SK_SHARED_SPEC_CTRL(%rdi)
	cmp	PER_CPU_VAR(x86_spec_ctrl_current), %eax
	je	.Lspec_saved
	mov	PER_CPU_VAR(x86_spec_ctrl_current), %rax
	mov	%rax, %rdx
	shr	$32, %rdx
	wrmsr
.Lspec_saved:
	/* No guest value stays in a register that speculation could use. */
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%ebx, %ebx
	xor	%ebp, %ebp
	xor	%esi, %esi
	xor	%edi, %edi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	xor	%r12d, %r12d
	xor	%r13d, %r13d
	xor	%r14d, %r14d
	xor	%r15d, %r15d
	SK_UNTRAIN_RET
	stgi

	pop	%rdi
	pop	%rsi
	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
	RET
SYM_FUNC_END(sk_svm_vmrun)
