// SPDX-License-Identifier: GPL-2.0-only
/* What Kernel.KernelHeap needs of C: an inline function of the kernel. */
#include <linux/mm.h>
#include <linux/slab.h>
#include "cskernel.h"

void *cs_heap_allocate(unsigned long bytes)
{
	return kvzalloc(bytes, GFP_KERNEL_ACCOUNT);
}
