/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What generated assembler source needs: the same text is a part of a kernel module, or, for tests, of an ordinary
 * process, where good pointers are positive.
 */
#ifndef CSKERNEL_ASM_H
#define CSKERNEL_ASM_H

#ifdef __KERNEL__

#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/ibt.h>
#include <asm/nospec-branch.h>

#define CS_ENDBR ENDBR
#define CS_RET RET
#define CS_FAULT(from, to) _ASM_EXTABLE(from, to)
#define CS_JUMP_IF_BAD jns
#define CS_JUMP_IF_GOOD js

#else

#define CS_ENDBR endbr64
#define CS_RET ret
/* The test's signal handler looks a fault up here: two offsets from the entry itself. */
#define CS_FAULT(from, to) \
	.pushsection cs_faults, "a"; .balign 4; .long from - ., to - .; .popsection
#define CS_JUMP_IF_BAD jz
#define CS_JUMP_IF_GOOD jnz

#endif

/* Ends the C# call: cs_trap finds the door that the core was entered by. ud2 tells objtool that nothing follows. */
#define CS_TRAP(site) movl $site, %eax; call cs_trap; ud2

#endif
