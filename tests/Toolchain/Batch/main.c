// SPDX-License-Identifier: GPL-2.0-only
/* Runs the batch that the toolchain compiled, in a kernel or in a process; Reference/Program.cs does the same. */
#ifdef __KERNEL__
#include <linux/module.h>
#include <linux/sched.h>
#define print(...) pr_info(__VA_ARGS__)
typedef u64 word;
#define W "llx"
#else
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#define print(...) printf(__VA_ARGS__)
#define cond_resched()
typedef uint64_t word;
#define W "lx"
#endif
#include "cskernel.h"

#define MEMORY_SIZE 256
#define RUNS 12
#define FNV_OFFSET 14695981039346656037ULL
#define FNV_PRIME 1099511628211ULL

#define BATCH_FUNCTION(n) extern void batch_##n(void);
#include "table.h"
#undef BATCH_FUNCTION
#define BATCH_FUNCTION(n) batch_##n,
static void (*const batch_functions[])(void) = {
#include "table.h"
};
#define BATCH_COUNT (sizeof(batch_functions) / sizeof(batch_functions[0]))

static const word special[8] = {
	0, 1, ~0ULL, 1ULL << 63, 0x7fffffff, 0xffffffff80000000ULL, 255, 0x100000000ULL,
};

static word state;

static word next(void)
{
	state = state * 6364136223846793005ULL + 1442695040888963407ULL;
	return state;
}

static word input(void)
{
	word value;

	if (next() >> 60 < 6)
		return special[(next() >> 40) % 8];
	value = next();
	return value ^ next() >> 29;
}

static word run_batch(int verbose)
{
	static unsigned char memory[MEMORY_SIZE] __attribute__((aligned(16)));
	word checksum = FNV_OFFSET;
	unsigned int function, run, i;

	for (function = 0; function < BATCH_COUNT; function++) {
		for (run = 0; run < RUNS; run++) {
			word a, b, c, value, hash = FNV_OFFSET;
			struct cs_result result;

			state = ((word)function << 8) + run;
			for (i = 0; i < MEMORY_SIZE; i++)
				memory[i] = next() >> 40;
			a = input();
			b = input();
			c = input();
			result = cs_enter(batch_functions[function], a, b, c, (long)memory);
			value = result.site ? 0 : result.value;
			for (i = 0; i < MEMORY_SIZE; i++)
				hash = (hash ^ memory[i]) * FNV_PRIME;
			checksum = (((checksum ^ value) * FNV_PRIME) ^ hash ^ !!result.site) * FNV_PRIME;
			if (verbose)
				print("%u %u %d %016" W " %016" W "\n", function, run, !!result.site, value, hash);
		}
		cond_resched();
	}
	return checksum;
}

#ifdef __KERNEL__

static int __init batch_init(void)
{
	word checksum = run_batch(0);

	print("batch: %zu functions, checksum %016" W "\n", BATCH_COUNT, checksum);
	return 0;
}

static void __exit batch_exit(void)
{
}

module_init(batch_init);
module_exit(batch_exit);
MODULE_AUTHOR("The SharpKVM authors");
MODULE_DESCRIPTION("Random C# functions, compiled by the toolchain");
MODULE_LICENSE("GPL");

#else

#include <signal.h>
#include <stdlib.h>
#include <ucontext.h>

struct fault {
	int32_t from, to;
};

extern const struct fault __start_cs_faults[], __stop_cs_faults[];

/* What the kernel's exception table does for a module. */
static void on_fault(int number, siginfo_t *info, void *context)
{
	greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	const struct fault *fault;

	for (fault = __start_cs_faults; fault < __stop_cs_faults; fault++) {
		if ((greg_t)&fault->from + fault->from == *rip) {
			*rip = (greg_t)&fault->to + fault->to;
			return;
		}
	}
	signal(number, SIG_DFL);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
	word checksum;

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGFPE, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	checksum = run_batch(argc > 1 && !strcmp(argv[1], "-v"));
	printf("batch: %zu functions, checksum %016" W "\n", BATCH_COUNT, checksum);
	return 0;
}

#endif
