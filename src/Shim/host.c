// SPDX-License-Identifier: GPL-2.0-only
/* Imports of the core: memory, user space, the FPU, CPU facts. One kernel service each. */
#include "shim.h"

/* 2^order contiguous pages, filled with a byte. Returns the physical address or 0. */
u64 sk_pages_allocate(unsigned int order, u8 fill)
{
	/* Bitmaps and what hardware takes for them lie below 4 GiB: roots of PAE paging must. */
	struct page *page = alloc_pages(GFP_KERNEL_ACCOUNT | (fill ? GFP_DMA32 : 0), order);

	if (!page)
		return 0;
	memset(page_address(page), fill, PAGE_SIZE << order);
	return page_to_phys(page);
}

/* Makes a page present as an access by the process would. SharpKvm.Host.PageLookup says what it returns. */
long sk_fault_page(struct sk_vm *vm, unsigned long address, bool write, bool wait)
{
	bool unlocked = false;
	struct page *page;
	long result;

	if (!wait) {
		result = get_user_pages_unlocked(address, 1, &page, FOLL_NOWAIT | (write ? FOLL_WRITE : 0));
		if (result == 1)
			put_page(page);
		if (result >= 0)
			return result ? 0 : 3;
	}
	if (mmap_read_lock_killable(vm->mm))
		return 2;
	result = fixup_user_fault(vm->mm, address, write ? FAULT_FLAG_WRITE : 0, &unlocked);
	mmap_read_unlock(vm->mm);
	return result == -EINTR ? 2 : result ? 1 : 0;
}

/*
 * Answers are u32, not bool: the core's compiler tests the whole of %eax, of which C's bool defines only the low byte.
 */
u32 sk_read_msr(u32 index, u64 *value)
{
	return !rdmsrl_safe(index, value);
}
