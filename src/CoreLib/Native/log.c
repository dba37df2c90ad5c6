// SPDX-License-Identifier: GPL-2.0-only
/* What Kernel.Log needs of C: the module's name. */
#include <linux/printk.h>
#include "cskernel.h"

void cs_log_error(const char *text, u64 value)
{
	pr_err("%s: %s (%#llx)\n", KBUILD_MODNAME, text, value);
}
