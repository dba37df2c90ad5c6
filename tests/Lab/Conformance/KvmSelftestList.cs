// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab.Conformance;

/// <summary>Which of Linux's KVM selftests are run, and how; sizes and times suit an emulated machine.</summary>
public static class KvmSelftestList
{
    /// <summary>What is run, in this order.</summary>
    public static IReadOnlyList<KvmSelftest> All { get; } =
    [
        // A CPU's state.
        new("x86_64/state_test"),
        new("x86_64/set_sregs_test"),
        new("x86_64/cr4_cpuid_sync_test"),
        new("x86_64/cpuid_test"),
        new("x86_64/sync_regs_test"),
        new("x86_64/debug_regs"),
        new("x86_64/get_msr_index_features"),
        new("x86_64/platform_info_test"),
        new("x86_64/xss_msr_test"),
        new("x86_64/ucna_injection_test"),
        // Exits to user space.
        new("x86_64/userspace_io_test"),
        new("x86_64/userspace_msr_exit_test"),
        new("x86_64/emulator_error_test"),
        new("x86_64/monitor_mwait_test"),
        new("x86_64/fix_hypercall_test"),
        // Interrupts.
        new("x86_64/xapic_state_test"),
        new("x86_64/xapic_ipi_test -s 2"),
        new("x86_64/set_boot_cpu_id"),
        new("x86_64/max_vcpuid_cap_test"),
        // Time and the paravirtual interface.
        new("x86_64/kvm_clock_test"),
        new("x86_64/kvm_pv_test"),
        new("x86_64/tsc_msrs_test"),
        new("x86_64/tsc_scaling_sync"),
        new("system_counter_offset_test"),
        new("steal_time"),
        // The host's side.
        new("kvm_create_max_vcpus", 180),
        new("kvm_binary_stats_test") { Lacks = "statistics by file descriptor" },
        // Memory: the longest come last.
        new("max_guest_memory_test -c 2 -m 1 -s 1", 120),
        new("demand_paging_test -b 16M -v 2", 120),
        new("demand_paging_test -b 16M -v 2 -u MISSING", 120),
        new("demand_paging_test -b 16M -v 2 -u MINOR -s shmem", 120),
        new("access_tracking_perf_test -b 16M -v 2", 120),
        new("kvm_page_table_test -b 32M -v 2", 120),
        new("kvm_page_table_test -b 32M -v 2 -s anonymous_thp", 120),
        new("memslot_modification_stress_test -b 16M -v 2 -i 20", 120),
        new("dirty_log_perf_test -b 16M -v 2 -i 2", 120),
        new("dirty_log_perf_test -b 16M -v 2 -i 2 -g", 120),
        new("dirty_log_perf_test -b 16M -v 2 -i 2 -x 4 -o", 120),
        new("dirty_log_test -i 3 -M dirty-log", 400),
        new("dirty_log_test -i 3 -M clear-log", 400),
        new("dirty_log_test -i 3 -M dirty-ring", 400),
        new("memslot_perf_test -l 1 -s 64", 300),
        new("set_memory_region_test 2", 300),
        new("rseq_test", 100),
        // It goes last: what it leaves behind slows all that follow.
        new("hardware_disable_test", 240),
    ];

    /// <summary>What is not run: why, and the beginnings of the programs' paths.</summary>
    public static IReadOnlyList<(string Why, string[] Programs)> LeftOut { get; } =
    [
        ("for Intel's processors", ["x86_64/vmx_", "x86_64/evmcs_test", "x86_64/mmio_warning_test"]),
        ("virtualization in the guest",
            ["x86_64/svm_", "x86_64/hyperv_svm_test", "x86_64/nested_", "x86_64/triple_fault_event_test"]),
        ("Hyper-V's and Xen's interfaces", ["x86_64/hyperv_", "x86_64/xen_"]),
        ("system management mode", ["x86_64/smm_test"]),
        ("performance counters", ["x86_64/pmu_event_filter_test"]),
        ("processor features that the emulated machine lacks", ["x86_64/amx_test", "x86_64/sev_"]),
        ("needs parameters of stock KVM's modules", ["x86_64/nx_huge_pages_test"]),
    ];

    /// <summary>The programs that are neither run nor left out: a newer kernel's.</summary>
    public static IEnumerable<string> Unknown(IEnumerable<string> programs) => programs
        .Where(program => !All.Any(test => test.Program == program))
        .Where(program => !LeftOut.SelectMany(group => group.Programs)
            .Any(start => program.StartsWith(start, StringComparison.Ordinal)));
}
