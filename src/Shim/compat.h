/* SPDX-License-Identifier: GPL-2.0-only */
/* All differences between the kernels we build for: Linux 6.1 and 6.12. */
#ifndef SHARPKVM_COMPAT_H
#define SHARPKVM_COMPAT_H

#include <linux/version.h>

#ifdef __ASSEMBLY__

.macro SK_UNTRAIN_RET
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
	UNTRAIN_RET_VM
#else
	UNTRAIN_RET
#endif
.endm

#endif
#endif
