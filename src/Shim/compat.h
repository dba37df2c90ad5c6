/* SPDX-License-Identifier: GPL-2.0-only */
/* All differences between the kernels we build for: Linux 6.1 and 6.12. */
#ifndef SHARPKVM_COMPAT_H
#define SHARPKVM_COMPAT_H

#include <linux/version.h>

#ifdef __ASSEMBLY__

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
#define SK_UNTRAIN_RET UNTRAIN_RET_VM
#else
#define SK_UNTRAIN_RET UNTRAIN_RET
#endif

#else

#include <linux/cpuhotplug.h>

/* Linux 6.1 switches SVM off in a crash by itself; later ones ask whoever has switched it on. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
#include <asm/reboot.h>
#define sk_emergency_register(callback) cpu_emergency_register_virt_callback(callback)
#define sk_emergency_unregister(callback) cpu_emergency_unregister_virt_callback(callback)
#else
#define sk_emergency_register(callback) ((void)(callback))
#define sk_emergency_unregister(callback) ((void)(callback))
#endif

/* Posted interrupts: a CPU in a guest takes them, any other ignores the call. Handlers are found by the IDT. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
#define sk_can_post() (IS_ENABLED(CONFIG_KVM) && !cpu_feature_enabled(X86_FEATURE_FRED))
#define sk_send_posted(cpu) __apic_send_IPI_mask(cpumask_of(cpu), SK_POSTED_VECTOR)
#else
#define sk_can_post() IS_ENABLED(CONFIG_HAVE_KVM)
#define sk_send_posted(cpu) apic->send_IPI_mask(cpumask_of(cpu), SK_POSTED_VECTOR)
#endif

/* The hotplug state that Linux's own KVM takes when it is loaded. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
#define SK_KVM_HOTPLUG_STATE CPUHP_AP_KVM_ONLINE
#else
#define SK_KVM_HOTPLUG_STATE CPUHP_AP_KVM_STARTING
#endif

#endif
#endif
