/* SPDX-License-Identifier: GPL-2.0-only */
/* The C side of a module with a C# core: how to enter it, and what a trap in it leaves behind. */
#ifndef CSKERNEL_H
#define CSKERNEL_H

/* The core imports functions by name: they have no caller in C, and no prototype. */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"

/* In rax and rdx. A site of 0 is a normal return; any other says where the core trapped, and value is -EIO. */
struct cs_result {
	long value;
	unsigned long site;
};

/*
 * Calls fn(a, b, c, d), a method with [RuntimeExport], with up to four integer or pointer arguments. On a trap the
 * stack and the callee-saved registers are as before the call; whatever else the core took is the caller's to return.
 * Calls may nest: a trap ends the innermost. Must be the only way from C into C#.
 */
struct cs_result cs_enter(void *fn, long a, long b, long c, long d);

/* Names the C# method, file and line in the kernel log, rate limited. */
void cs_report_trap(unsigned long site);

/* Adds 1 to an eventfd's counter (eventfd.o). */
struct eventfd_ctx;
void cs_eventfd_signal(struct eventfd_ctx *context);

#endif
