// SPDX-License-Identifier: GPL-2.0-only
/* What a trap says in the kernel log. The tables come from ilpatch and name every place where the core may trap. */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/printk.h>
#include "cskernel.h"

struct cs_site {
	u32 method;		/* offsets into cs_strings */
	u32 file;
	u32 line : 24;
	u32 kind : 8;
};

extern const struct cs_site cs_sites[];
extern const u32 cs_site_count;
extern const char cs_strings[];

/* The order of ilpatch's TrapKind. */
static const char *const cs_kinds[] = {
	"null or wild address", "index out of range", "arithmetic overflow", "divide error", "range outside its span",
	"invalid argument", "state that cannot be", "stack overrun", "fault in a privileged instruction",
};

void cs_report_trap(unsigned long site)
{
	const struct cs_site *at;

	if (site - 1 >= cs_site_count) {
		pr_err_ratelimited("%s: trap: unknown site %lu\n", KBUILD_MODNAME, site);
		return;
	}
	at = &cs_sites[site - 1];
	pr_err_ratelimited("%s: trap: %s in %s (%s:%u)\n", KBUILD_MODNAME,
			   at->kind < ARRAY_SIZE(cs_kinds) ? cs_kinds[at->kind] : "?",
			   cs_strings + at->method, cs_strings + at->file, at->line);
}
