// SPDX-License-Identifier: GPL-2.0-only
/* Loading, the character device, and virtualization per CPU: hotplug, suspend, reboot. */
#include "shim.h"

#include <linux/cpu.h>
#include <linux/miscdevice.h>
#include <linux/reboot.h>
#include <linux/syscore_ops.h>
#include <asm/tsc.h>

static char *devname = "sharpkvm";
module_param(devname, charp, 0444);
MODULE_PARM_DESC(devname, "name of the character device below /dev (default: sharpkvm)");

static bool ignore_msrs;
module_param(ignore_msrs, bool, 0644);
MODULE_PARM_DESC(ignore_msrs, "unknown MSRs read as 0 and ignore writes instead of raising #GP in the guest");

static u32 sk_halt_poll_ns = 200000;
module_param_named(halt_poll_ns, sk_halt_poll_ns, uint, 0644);
MODULE_PARM_DESC(halt_poll_ns, "longest time that a halted vCPU polls before it sleeps (default: 200000)");

static bool nested_paging = true;
module_param_named(npt, nested_paging, bool, 0444);
MODULE_PARM_DESC(npt, "0: shadow paging, although the CPU has AMD's nested paging (default: 1)");
module_param_named(ept, nested_paging, bool, 0444);
MODULE_PARM_DESC(ept, "0: the same with Intel's");

/*
 * Import of the core: the parameters, which root may change at any time, in bit 60 whether posted interrupts have a
 * handler, in bit 61 whether nested paging may be used, in bit 62 whether large executable pages are to be avoided.
 */
u64 sk_parameters(void)
{
	bool multihit = boot_cpu_has_bug(X86_BUG_ITLB_MULTIHIT) && !cpu_mitigations_off();

	return READ_ONCE(sk_halt_poll_ns) | (u64)sk_can_post() << 60 | (u64)nested_paging << 61 |
	       (u64)multihit << 62 | (u64)READ_ONCE(ignore_msrs) << 63;
}

/* Import of the core: the rate of the TSC. Linux measures it once more when it has booted. */
u32 sk_tsc_khz(void)
{
	return tsc_khz;
}

LIST_HEAD(sk_all_vms);
/* Rank 0: VMs that exist, and whether there may be more. */
DEFINE_MUTEX(sk_module_lock);
bool sk_rebooting;

/* What a CPU needs: the page VMRUN saves host state in, and behind it the VMCB that VMSAVE keeps the rest in. */
struct sk_cpu {
	struct page *pages;
	bool enabled;
};

static DEFINE_PER_CPU(struct sk_cpu, sk_cpus);

u64 sk_host_vmcb_pa(void)
{
	return page_to_phys(__this_cpu_read(sk_cpus.pages)) + PAGE_SIZE;
}

/* On the CPU itself with interrupts off, like all that follows for one. */
static void cpu_enable(void *unused)
{
	struct sk_cpu *cpu = this_cpu_ptr(&sk_cpus);
	int error = sk_call(sk_core_cpu_enable, page_to_phys(cpu->pages), 0, 0);

	cpu->enabled = !error;
	if (error)
		pr_err("virtualization can't be enabled on CPU %d (%d): another hypervisor holds it?\n",
		       smp_processor_id(), error);
}

static void cpu_disable(void *unused)
{
	struct sk_cpu *cpu = this_cpu_ptr(&sk_cpus);

	if (!cpu->enabled)
		return;
	sk_call(sk_core_cpu_disable, 0, 0, 0);
	cpu->enabled = false;
}

/* A crash: this CPU goes to another kernel. Whatever else is broken, no C# runs here. */
static void emergency_disable(void)
{
	u64 efer;

	if (sk_is_vmx) {
		sk_vmx_off();
		return;
	}
	rdmsrl(MSR_EFER, efer);
	if (!(efer & EFER_SVME))
		return;
	/* INIT, which starts the other kernel, is held back while GIF is clear. */
	asm volatile("stgi" : : : "memory");
	wrmsrl(MSR_EFER, efer & ~EFER_SVME);
}

/* On the CPU's own thread; no guest runs there. */
static int online_cpu(unsigned int cpu)
{
	struct page **pages = &per_cpu(sk_cpus, cpu).pages;

	if (!*pages)
		*pages = alloc_pages(GFP_KERNEL | __GFP_ZERO, 1);
	if (!*pages)
		return -ENOMEM;
	smp_call_function_single(cpu, cpu_enable, NULL, 1);
	return per_cpu(sk_cpus, cpu).enabled ? 0 : -EBUSY;
}

static int offline_cpu(unsigned int cpu)
{
	return smp_call_function_single(cpu, cpu_disable, NULL, 1);
}

/* The boot CPU; the others went through hotplug. Interrupts are off and nothing else runs. */
static int suspend(void)
{
	cpu_disable(NULL);
	return 0;
}

static void resume(void)
{
	cpu_enable(NULL);
}

static struct syscore_ops syscore = { .suspend = suspend, .resume = resume };

/* Guests may still run: all leave for good before virtualization ends under them. */
static int reboot(struct notifier_block *block, unsigned long event, void *data)
{
	struct sk_vm *vm;

	mutex_lock(&sk_module_lock);
	sk_rebooting = true;
	list_for_each_entry(vm, &sk_all_vms, all_vms) {
		WRITE_ONCE(vm->dead, true);
		/* Those that sleep, and those that run. */
		sk_request_all(vm, SK_REQUEST_DEAD, false);
		sk_request_all(vm, SK_REQUEST_DEAD, true);
	}
	mutex_unlock(&sk_module_lock);
	on_each_cpu(cpu_disable, NULL, 1);
	return NOTIFY_OK;
}

static struct notifier_block reboot_notifier = { .notifier_call = reboot };

static long device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	return sk_call(sk_core_system_ioctl, command, argument, 0);
}

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = KVM_MINOR,
	.fops = &device_fops,
	.mode = 0600,
};

static int hotplug_state = -ENOMEM;

/* What sk_init() has done, however far it came. */
static void undo(void)
{
	int cpu;

	/* Its work uses all that is below. */
	if (sk_fetches)
		destroy_workqueue(sk_fetches);
	preempt_notifier_dec();
	unregister_reboot_notifier(&reboot_notifier);
	unregister_syscore_ops(&syscore);
	if (hotplug_state > 0)
		cpuhp_remove_state(hotplug_state);
	sk_emergency_unregister(emergency_disable);
	debugfs_remove_recursive(sk_debugfs_root);
	for_each_possible_cpu(cpu) {
		if (per_cpu(sk_cpus, cpu).pages)
			__free_pages(per_cpu(sk_cpus, cpu).pages, 1);
	}
	cpuhp_remove_state_nocalls(SK_KVM_HOTPLUG_STATE);
	sk_call(sk_core_release, 0, 0, 0);
}

static int __init sk_init(void)
{
	int result = sk_call(sk_core_probe, PTE_PFN_MASK, PAGE_OFFSET, sizeof(struct sk_vcpu_shared));

	if (result < 0)
		return result;
	sk_is_vmx = result;
	/*
	 * KVM's own hotplug state, held for as long as we are here, and without callbacks: kvm_init() asks for it early
	 * and backs out cleanly. The device's number alone comes too late: on 6.1 a kvm_init() that fails there leaves
	 * its syscore_ops behind in the kernel's list.
	 */
	result = cpuhp_setup_state_nocalls(SK_KVM_HOTPLUG_STATE, "x86/sharpkvm:claim", NULL, NULL);
	if (result) {
		pr_err("another KVM module is loaded; unload it first (%d)\n", result);
		sk_call(sk_core_release, 0, 0, 0);
		return result;
	}
	sk_debugfs_init();
	register_syscore_ops(&syscore);
	register_reboot_notifier(&reboot_notifier);
	/* Patches the scheduler's code on all CPUs: once, not with each machine that comes first or goes last. */
	preempt_notifier_inc();
	sk_emergency_register(emergency_disable);
	sk_fetches = alloc_workqueue("sharpkvm", WQ_UNBOUND, 0);
	if (sk_fetches)
		hotplug_state = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "x86/sharpkvm:online", online_cpu, offline_cpu);
	result = hotplug_state;
	if (result < 0)
		goto undo;
	/* KVM's own minor: whichever of the two comes second gets EBUSY. */
	device.name = devname;
	result = misc_register(&device);
	if (result) {
		pr_err("/dev/%s can't be created (%d)%s\n", devname, result,
		       result == -EBUSY ? ": another KVM module is loaded; unload it first" : "");
		goto undo;
	}
	pr_info("version %s ready on /dev/%s\n", THIS_MODULE->version, devname);
	return 0;

undo:
	undo();
	return result;
}

static void __exit sk_exit(void)
{
	misc_deregister(&device);
	undo();
}

module_init(sk_init);
module_exit(sk_exit);
MODULE_AUTHOR("The SharpKVM authors");
MODULE_DESCRIPTION("A hypervisor in C# that speaks the KVM API");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
MODULE_ALIAS("devname:sharpkvm");
