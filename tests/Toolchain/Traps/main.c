// SPDX-License-Identifier: GPL-2.0-only
/* Makes the core trap in every way there is, and checks that each comes back as an error of the right kind and line. */
#include <linux/module.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "cskernel.h"

enum { NONE = -1, ADDRESS, INDEX, OVERFLOW, DIVIDE, RANGE, ARGUMENT, STATE, STACK, PRIVILEGED };

struct cs_site {
	u32 method, file;
	u32 line : 24;
	u32 kind : 8;
};

extern const struct cs_site cs_sites[];

#define METHODS(M) M(read) M(write) M(field) M(indexed) M(atomic) M(struct) M(move) M(clear) M(index) M(slice) \
	M(overflow) M(divide) M(xgetbv) M(switch) M(deep) M(nested) \
	M(small) M(user) M(eventfd) M(log)
#define DECLARE(name) extern void trap_##name(void);
METHODS(DECLARE)

long traps_enter_again(long value);
u64 traps_small(long value);
u64 traps_small_short(long value);

static u64 word[4] = { 1, 2, 3, 4 };
static unsigned int passed, failed;

static void expect(const char *what, void (*method)(void), long a, long b, long c, int kind, long value)
{
	struct cs_result result = cs_enter(method, a, b, c, 0);
	int got = result.site ? cs_sites[result.site - 1].kind : NONE;

	if (got == kind && result.value == (kind == NONE ? value : -EIO)) {
		passed++;
		return;
	}
	failed++;
	pr_err("traps: %s: kind %d, value %ld; wanted %d, %ld\n", what, got, result.value, kind, value);
	if (result.site)
		cs_report_trap(result.site);
}

#define EXPECT(name, a, b, c, kind, value) \
	expect(#name "(" #a ", " #b ", " #c ")", trap_##name, (long)(a), (long)(b), (long)(c), kind, value)

long traps_enter_again(long value)
{
	struct cs_result result = cs_enter(trap_divide, 100, value, 0, 0);

	return result.site ? -1000 : result.value;
}

/* What a C function that returns bool may leave in rax: only al counts. */
u64 traps_small(long value)
{
	return 0xdeadbeef12345600 | (u8)value;
}

u64 traps_small_short(long value)
{
	return 0xdeadbeef1234fffe;
}

static void addresses(long bad)
{
	EXPECT(read, bad, 0, 0, ADDRESS, 0);
	EXPECT(write, bad, 0, 0, ADDRESS, 0);
	EXPECT(field, bad, 0, 0, ADDRESS, 0);
	EXPECT(indexed, bad, 1, 0, ADDRESS, 0);
	EXPECT(indexed, 1, bad, 0, ADDRESS, 0);
	EXPECT(atomic, bad, 0, 0, ADDRESS, 0);
	EXPECT(struct, bad, word, 0, ADDRESS, 0);
	EXPECT(struct, word, bad, 0, ADDRESS, 0);
	EXPECT(move, bad, word, 8, ADDRESS, 0);
	EXPECT(move, word, bad, 32, ADDRESS, 0);
	EXPECT(move, bad, word, 32, ADDRESS, 0);
	EXPECT(move, word, bad, 7, ADDRESS, 0);
	EXPECT(clear, bad, 32, 0, ADDRESS, 0);
	EXPECT(deep, 0, bad, 0, ADDRESS, 0);
	EXPECT(deep, 20, bad, 0, ADDRESS, 0);
}

/* What the library has of the kernel's services, with the stack of the process that loads the module. */
static void services(void)
{
	unsigned long address = current->mm->arg_start & ~7UL;
	u64 there = 0;

	if (get_user(there, (u64 __user *)address))
		failed++;
	EXPECT(user, address, there, 0, NONE, 63);
	EXPECT(user, word, word[0], 0, NONE, 0);
	EXPECT(eventfd, -1, 0, 0, NONE, -EBADF);
	EXPECT(eventfd, 0, 0, 0, NONE, -EINVAL);
	EXPECT(log, 42, 0, 0, NONE, 0);
}

static int __init traps_init(void)
{
	unsigned int i;
	/* null, low, user, not canonical, top of the space, unmapped hole of the kernel's half */
	static const long bad[] = {
		0, 8, 0x1000, 0x400000, 0x7fffffffe000, 0x8000000000000000, 0xdead4ead00000000, -16, -4096,
		0xffff800000001000, 0xffffffffff000000,
	};

	for (i = 0; i < ARRAY_SIZE(bad); i++)
		addresses(bad[i]);

	EXPECT(read, word, 0, 0, NONE, 1);
	EXPECT(field, word, 0, 0, NONE, 2);
	EXPECT(index, word, 32, 31, NONE, 0);
	EXPECT(index, word, 32, 32, INDEX, 0);
	EXPECT(index, word, 32, -1, INDEX, 0);
	EXPECT(index, word, -1, 0, RANGE, 0);
	EXPECT(slice, word, 32, 33, RANGE, 0);
	EXPECT(slice, word, 32, 30, NONE, 2);
	EXPECT(overflow, 1L << 40, 1L << 40, 0, OVERFLOW, 0);
	EXPECT(overflow, 6, 7, 0, NONE, 42);
	EXPECT(divide, 1, 0, 0, DIVIDE, 0);
	EXPECT(divide, LONG_MIN, -1, 0, DIVIDE, 0);
	EXPECT(divide, 84, 2, 0, NONE, 42);
	EXPECT(xgetbv, 0x77, 0, 0, PRIVILEGED, 0);
	EXPECT(switch, 1, 0, 0, NONE, 20);
	EXPECT(switch, 2, 0, 0, STATE, 0);
	EXPECT(nested, 4, 0, 0, NONE, 26);
	EXPECT(nested, 0, 0, 0, NONE, -999);
	EXPECT(small, 0, 0, 0, NONE, -0x20000);
	EXPECT(small, 1, 0, 0, NONE, 1);
	services();
	for (i = 0; i < 20000; i++)
		EXPECT(deep, i % 30, i % 2 ? 0 : 0x8000000000000000, 0, ADDRESS, 0);

	pr_info("traps: %u passed, %u failed\n", passed, failed);
	return 0;
}

static void __exit traps_exit(void)
{
}

module_init(traps_init);
module_exit(traps_exit);
MODULE_AUTHOR("The SharpKVM authors");
MODULE_DESCRIPTION("Every trap that contained C# code can make");
MODULE_LICENSE("GPL");
