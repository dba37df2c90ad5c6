/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The door between C and the C# core, and the landing of a trap.
 *
 * Every core method keeps an rbp frame, and C reaches the core through cs_enter only. So from the place of a trap the
 * rbp chain runs through core frames to the frame of the innermost door, which the return address of its call tells.
 * Linux writes that call anew when it boots, as the CPU needs it, so that it may end before the space it has.
 */
#include "cskernel-asm.h"

#ifdef __KERNEL__
#include <asm/page_types.h>
#include <asm/unwind_hints.h>
#include <linux/version.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
#define CS_UNWIND_UNKNOWN UNWIND_HINT_UNDEFINED
#else
#define CS_UNWIND_UNKNOWN UNWIND_HINT_EMPTY
#endif
#define CS_UNWIND_FUNC UNWIND_HINT_FUNC
#define CS_CALL_RAX CALL_NOSPEC rax
#else
#define CS_UNWIND_UNKNOWN
#define CS_UNWIND_FUNC
#define CS_CALL_RAX call *%rax
#endif

#define CS_EIO 5
/* More than the longest form of an indirect call has. */
#define CS_CALL_SPACE 16

/* One access of cs_memmove, with its fault entry. */
.macro move_op instruction:vararg
	.Lmove\@: \instruction
	CS_FAULT(.Lmove\@, .Lmove_fault)
.endm
#define CS_MOVE(...) move_op __VA_ARGS__

	.text

/* struct cs_result cs_enter(void *fn, long a, long b, long c, long d) */
	.p2align 4
	.globl cs_enter
	.type cs_enter, @function
cs_enter:
	CS_ENDBR
	pushq %rbp
	movq %rsp, %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	pushq $0		/* the site; the landing overwrites it */
	movq %rdi, %rax
	movq %rsi, %rdi
	movq %rdx, %rsi
	movq %rcx, %rdx
	movq %r8, %rcx
.Ldoor_call:
	CS_CALL_RAX
	popq %rdx
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	CS_RET
	.size cs_enter, . - cs_enter

/* Where every trap goes: the site in eax, rbp the frame of the method that trapped. */
	.p2align 4
	.globl cs_trap
	.type cs_trap, @notype
cs_trap:
	CS_UNWIND_UNKNOWN
	leaq .Ldoor_call(%rip), %rdx
.Lnext_frame:
#ifdef __KERNEL__
	/* Off this stack there is no door: somebody called C# without it, which is a bug of the C side. */
	movq %rbp, %rcx
	xorq %rsp, %rcx
	cmpq $THREAD_SIZE, %rcx
	jae .Lno_door
#endif
	movq 8(%rbp), %rcx
	subq %rdx, %rcx
	cmpq $CS_CALL_SPACE, %rcx
	jbe .Lfound
	movq (%rbp), %rbp
	jmp .Lnext_frame
.Lno_door:
	ud2
.Lfound:
	leaq 8(%rbp), %rsp
	movq (%rbp), %rbp
	movq %rax, 8(%rsp)	/* above the return address lies the door's word for the site */
	movq $-CS_EIO, %rax
	CS_UNWIND_FUNC
	CS_RET
	.size cs_trap, . - cs_trap

/*
 * void cs_memmove(void *to, const void *from, size_t bytes): memmove whose faults are traps of the caller's line, whose
 * site is in eax. Up to 32 bytes all loads come before all stores, so that an overlap does not matter.
 */
	.p2align 4
	.globl cs_memmove
	.type cs_memmove, @function
cs_memmove:
	pushq %rbp
	movq %rsp, %rbp
	movq %rdx, %rcx
	testq %rcx, %rcx
	jz .Lmoved
	testq %rdi, %rdi
	CS_JUMP_IF_BAD .Lmove_fault
	testq %rsi, %rsi
	CS_JUMP_IF_BAD .Lmove_fault
	cmpq $8, %rcx
	jb .Lunder_8
	cmpq $16, %rcx
	ja .Lover_16
	CS_MOVE(movq (%rsi), %rdx)
	CS_MOVE(movq -8(%rsi, %rcx), %r8)
	CS_MOVE(movq %rdx, (%rdi))
	CS_MOVE(movq %r8, -8(%rdi, %rcx))
	popq %rbp
	CS_RET
.Lunder_8:
	cmpl $4, %ecx
	jb .Lunder_4
	CS_MOVE(movl (%rsi), %edx)
	CS_MOVE(movl -4(%rsi, %rcx), %r8d)
	CS_MOVE(movl %edx, (%rdi))
	CS_MOVE(movl %r8d, -4(%rdi, %rcx))
	popq %rbp
	CS_RET
.Lunder_4:
	cmpl $2, %ecx
	jb .Lone
	CS_MOVE(movzwl (%rsi), %edx)
	CS_MOVE(movzwl -2(%rsi, %rcx), %r8d)
	CS_MOVE(movw %dx, (%rdi))
	CS_MOVE(movw %r8w, -2(%rdi, %rcx))
	popq %rbp
	CS_RET
.Lone:
	CS_MOVE(movzbl (%rsi), %edx)
	CS_MOVE(movb %dl, (%rdi))
.Lmoved:
	popq %rbp
	CS_RET
.Lover_16:
	cmpq $32, %rcx
	ja .Lover_32
	CS_MOVE(movq (%rsi), %rdx)
	CS_MOVE(movq 8(%rsi), %r8)
	CS_MOVE(movq -16(%rsi, %rcx), %r9)
	CS_MOVE(movq -8(%rsi, %rcx), %r10)
	CS_MOVE(movq %rdx, (%rdi))
	CS_MOVE(movq %r8, 8(%rdi))
	CS_MOVE(movq %r9, -16(%rdi, %rcx))
	CS_MOVE(movq %r10, -8(%rdi, %rcx))
	popq %rbp
	CS_RET
.Lover_32:
	movq %rdi, %rdx
	subq %rsi, %rdx
	cmpq %rcx, %rdx
	jb .Lbackward		/* from < to < from + bytes */
	movq %rcx, %rdx
	shrq $3, %rcx
	CS_MOVE(rep movsq)
	movl %edx, %ecx
	andl $7, %ecx
	CS_MOVE(rep movsb)
	popq %rbp
	CS_RET
.Lbackward:
	testb $7, %cl
	jz .Lbackward_words
	CS_MOVE(movzbl -1(%rsi, %rcx), %edx)
	CS_MOVE(movb %dl, -1(%rdi, %rcx))
	decq %rcx
	jmp .Lbackward
.Lbackward_words:
	CS_MOVE(movq -8(%rsi, %rcx), %rdx)
	CS_MOVE(movq %rdx, -8(%rdi, %rcx))
	subq $8, %rcx
	jnz .Lbackward_words
	popq %rbp
	CS_RET
.Lmove_fault:
	call cs_trap
	ud2
	.size cs_memmove, . - cs_memmove

/* void cs_memzero(void *to, size_t bytes): its faults are traps of the caller's line, whose site is in eax. */
	.p2align 4
	.globl cs_memzero
	.type cs_memzero, @function
cs_memzero:
	pushq %rbp
	movq %rsp, %rbp
	testq %rsi, %rsi
	jz .Lzeroed
	testq %rdi, %rdi
	CS_JUMP_IF_BAD .Lzero_fault
	movq %rax, %rdx		/* the site */
	xorl %eax, %eax
	movq %rsi, %rcx
	shrq $3, %rcx
.Lz1:	rep stosq
	movl %esi, %ecx
	andl $7, %ecx
.Lz2:	rep stosb
.Lzeroed:
	popq %rbp
	CS_RET
.Lzero_string_fault:
	movq %rdx, %rax
.Lzero_fault:
	call cs_trap
	ud2
	CS_FAULT(.Lz1, .Lzero_string_fault)
	CS_FAULT(.Lz2, .Lzero_string_fault)
	.size cs_memzero, . - cs_memzero

/* The compiler's guard word above each stackalloc; a changed one is a trap. It finds overruns, it keeps no secret. */
	.section .rodata
	.balign 8
	.globl __security_cookie
	.type __security_cookie, @object
	.size __security_cookie, 8
__security_cookie:
	.quad 0x5a17c0de00ff0a0d

	.section .note.GNU-stack, "", @progbits
