// SPDX-License-Identifier: GPL-2.0-only
/* What Kernel.EventFd needs of C: Linux 6.8 took the number from eventfd_signal. */
#include <linux/eventfd.h>
#include <linux/version.h>
#include "cskernel.h"

void cs_eventfd_signal(struct eventfd_ctx *context)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	eventfd_signal(context);
#else
	eventfd_signal(context, 1);
#endif
}
