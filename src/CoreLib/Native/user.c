// SPDX-License-Identifier: GPL-2.0-only
/* What Kernel.UserMemory needs of C: accesses that are macros of the kernel. */
#include <linux/uaccess.h>
#include "cskernel.h"

/*
 * Answers are u32, not bool: the core's compiler tests the whole of %eax, of which C's bool defines only the low byte.
 */
u32 cs_user_read_u64(unsigned long source, u64 *value)
{
	return !get_user(*value, (u64 __user *)source);
}

#define EXCHANGE(type) do {							\
	type old = expected;							\
	result = __try_cmpxchg_user((type __user *)address, &old, (type)replacement, fault_##type);	\
} while (0)

/* 0: swapped; 1: another value was there; 2: fault. The access is naturally aligned, so it stays in one page. */
long cs_user_exchange(unsigned long address, unsigned int size, u64 expected, u64 replacement)
{
	int result = -EFAULT;

	if (!access_ok((void __user *)address, size))
		return 2;
	if (size == 1)
		EXCHANGE(u8);
	else if (size == 2)
		EXCHANGE(u16);
	else if (size == 4)
		EXCHANGE(u32);
	else
		EXCHANGE(u64);
	return result < 0 ? 2 : result;
}
