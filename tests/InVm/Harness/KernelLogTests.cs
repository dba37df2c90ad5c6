// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm.Harness;

/// <summary>The scanner must find what is wrong, and nothing else: it is what says that a run was good.</summary>
[TestFixture]
public sealed class KernelLogTests
{
    private static readonly string[] Healthy =
    [
        "[    0.000000] Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org)",
        "[    0.120000] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible",
        "[    1.277473] Speculative Return Stack Overflow: WARNING: See https://kernel.org/doc/html/latest/x.html",
        "[    1.924698] mtrr: your CPUs had inconsistent fixed MTRR settings",
        "[    2.000000] NMI watchdog: Perf NMI watchdog permanently disabled",
        "[    2.100000] debug: turned off",
        "[    0.000000] kasan: KernelAddressSanitizer initialized (generic)",
        "[    0.010000] Running RCU self tests",
        "[    0.010001] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
        "[    0.010002] ... MAX_LOCKDEP_SUBCLASSES:  8",
        "[    0.500000] kmemleak: Kernel memory leak detector initialized (mem pool available: 31640)",
        "[    4.000000] sharpkvm: loading out-of-tree module taints kernel.",
        "[    4.000001] sharpkvm: module verification failed: signature and/or required key missing - tainting kernel",
        "[    4.100000] kvm [134]: vcpu0, guest rIP: 0xffffffff8107e744 Unhandled WRMSR(0xc0010007) = 0xffff",
        "[    5.000000] reboot: Power down",
    ];

    private static readonly string[] Warning =
    [
        "[    5.100000] ------------[ cut here ]------------",
        "[    5.100001] WARNING: CPU: 1 PID: 140 at sharpkvm/src/Shim/main.c:42 shim_ioctl+0x12/0x20 [sharpkvm]",
        "[    5.100002] Modules linked in: sharpkvm(OE)",
        "[    5.100003] CPU: 1 PID: 140 Comm: selftests Tainted: G           OE      6.1.0-56-amd64",
        "[    5.100004] Call Trace:",
        "[    5.100005]  <TASK>",
        "[    5.100006]  shim_ioctl+0x12/0x20 [sharpkvm]",
        "[    5.100007] ---[ end trace 0000000000000000 ]---",
    ];

    private static readonly string[] Trace =
    [
        "[    5.300000] Call Trace:",
        "[    5.300001]  <TASK>",
        "[    5.300002]  dump_stack_lvl+0x5b/0x77",
        "[    5.300003]  shim_ioctl+0x12/0x20 [sharpkvm]",
        "[    5.300004]  </TASK>",
    ];

    private const string Rule = "[    5.200000] ==================================================================";

    /// <summary>What the checkers of a debug kernel say, one report each.</summary>
    private static readonly string[][] Checkers =
    [
        [
            "[    5.200001] BUG: KASAN: use-after-free in shim_ioctl+0x12/0x20 [sharpkvm]",
            "[    5.200002] Read of size 8 at addr ffff888012345678 by task selftests/140",
            .. Trace,
            "[    5.400000] Allocated by task 140:",
            "[    5.400001]  kasan_save_stack+0x1e/0x40",
            "[    5.400002] Memory state around the buggy address:",
            "[    5.400003] >ffff888012345600: fa fb fb fb fb fb fb fb fb fb fb fb fb fb fb fb",
            Rule,
        ],
        [
            "[    5.200001] UBSAN: array-index-out-of-bounds in sharpkvm/vm.c:12:3",
            "[    5.200002] index 9 is out of range for type 'int [8]'",
            .. Trace,
            Rule,
        ],
        [
            "[    5.200001] WARNING: possible circular locking dependency detected",
            "[    5.200002] 6.1.192-debug #1 Tainted: G           OE     ",
            "[    5.200003] ------------------------------------------------------",
            "[    5.200004] selftests/140 is trying to acquire lock:",
            .. Trace,
        ],
        [
            "[    5.200001] BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
            "[    5.200002] in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: 140, name: selftests",
            .. Trace,
        ],
        [
            "[    5.200001] selftests: vmalloc error: size 896, vm_struct allocation failed, mode:0xdc0(GFP_KERNEL)",
            .. Trace,
        ],
        [
            "[    5.200001] => alloc_cpumask_var: failed!",
            .. Trace,
        ],
        [
            "[    5.200001] kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "[    5.200002] kmemleak: unreferenced object 0xffff888012345678 (size 64):",
            "[    5.200003] kmemleak:   backtrace:",
            "[    5.200004] kmemleak:     [<0000000012345678>] shim_ioctl+0x12/0x20 [sharpkvm]",
        ],
        [
            "[    5.200001] ------------[ cut here ]------------",
            "[    5.200002] ODEBUG: free active (active state 0) object type: timer_list hint: shim_tick+0x0/0x10",
            "[    5.200003] WARNING: CPU: 1 PID: 140 at lib/debugobjects.c:502 debug_print_object+0x6e/0x90",
            .. Trace,
            "[    5.400000] ---[ end trace 0000000000000000 ]---",
        ],
    ];

    [Test]
    public void HealthyLogHasNoReport() => Assert.That(Titles(Healthy), Is.Empty);

    [Test]
    public void OneReportForWholeWarning()
    {
        IReadOnlyList<KernelReport> reports = KernelLog.Scan([.. Healthy, .. Warning, .. Healthy]);
        Assert.That(reports, Has.Count.EqualTo(1));
        Assert.That(reports[0].Title, Does.StartWith("WARNING: CPU: 1 PID: 140 at sharpkvm/src/Shim/main.c:42"));
        Assert.That(reports[0].Lines, Has.Count.EqualTo(Warning.Length));
    }

    [TestCaseSource(nameof(Checkers))]
    public void OneReportForWholeCheckersReport(params string[] lines)
    {
        IReadOnlyList<KernelReport> reports = KernelLog.Scan([.. Healthy, Rule, .. lines, .. Healthy]);
        Assert.That(reports, Has.One.Items);
        Assert.That(reports[0].Lines, Is.EqualTo(lines.Select(KernelLog.WithoutTime)));
    }

    [Test]
    public void ReportsOfSeveralCheckersStayApart() =>
        Assert.That(KernelLog.Scan(Checkers.SelectMany(lines => lines)), Has.Count.EqualTo(Checkers.Length));

    [Test]
    public void ExpectedReportIsLeftOutAndOthersStay()
    {
        string[] log = [.. Warning, "[    6.0] BUG: sleeping function called from invalid context at mm/slab.h:274"];
        Assert.That(KernelLog.Scan(log, @"WARNING: .*shim_ioctl").Select(report => report.Title),
            Has.One.Items.And.All.StartsWith("BUG: sleeping function"));
    }

    [Test]
    public void ExpectationMatchesNoOtherReport() =>
        Assert.That(KernelLog.Scan(Warning, "sharpkvm: trap: .*Greeter.cs:12"), Has.Count.EqualTo(1));

    [TestCase("BUG: kernel NULL pointer dereference, address: 0000000000000010")]
    [TestCase("BUG: unable to handle page fault for address: ffffc90000000000")]
    [TestCase("Oops: 0002 [#1] PREEMPT SMP NOPTI")]
    [TestCase("general protection fault, probably for non-canonical address 0xdead000000000000: 0000 [#1] PREEMPT SMP")]
    [TestCase("kernel BUG at mm/slub.c:419!")]
    [TestCase("invalid opcode: 0000 [#1] PREEMPT SMP")]
    [TestCase("divide error: 0000 [#1] PREEMPT SMP")]
    [TestCase("int3: 0000 [#1] PREEMPT SMP")]
    [TestCase("WARNING: possible circular locking dependency detected")]
    [TestCase("WARNING: possible recursive locking detected")]
    [TestCase("WARNING: suspicious RCU usage")]
    [TestCase("WARNING: inconsistent lock state")]
    [TestCase("WARNING: bad unlock balance detected!")]
    [TestCase("BUG: scheduling while atomic: selftests/140/0x00000002")]
    [TestCase("BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580")]
    [TestCase("BUG: using smp_processor_id() in preemptible [00000000] code: selftests/140")]
    [TestCase("BUG: Bad page state in process qemu  pfn:12345")]
    [TestCase("BUG: Bad rss-counter state mm:000000000 type:MM_ANONPAGES val:1")]
    [TestCase("BUG: KASAN: use-after-free in shim_ioctl+0x12/0x20 [sharpkvm]")]
    [TestCase("UBSAN: array-index-out-of-bounds in x.c:12:3")]
    [TestCase("watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [selftests:140]")]
    [TestCase("NMI watchdog: Watchdog detected hard LOCKUP on cpu 0")]
    [TestCase("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:")]
    [TestCase("rcu: INFO: rcu_preempt self-detected stall on CPU")]
    [TestCase("INFO: task selftests:140 blocked for more than 120 seconds.")]
    [TestCase("unchecked MSR access error: WRMSR to 0xc0010117 (tried to write 0x0000000000000000)")]
    [TestCase("refcount_t: underflow; use-after-free.")]
    [TestCase("list_del corruption. prev->next should be ffff888100273300")]
    [TestCase("BUG kmem_cache_x (Tainted: G    B     OE): Objects remaining on __kmem_cache_shutdown()")]
    [TestCase("INFO: trying to register non-static key.")]
    [TestCase("INFO: lockdep is turned off.")]
    [TestCase("turning off the locking correctness validator.")]
    [TestCase("BUG: MAX_LOCKDEP_CHAINS too low!")]
    [TestCase("[ BUG: Invalid wait context ]")]
    [TestCase("WARNING: possible irq lock inversion dependency detected")]
    [TestCase("WARNING: lock held when returning to user space!")]
    [TestCase("ODEBUG: init active (active state 0) object type: work_struct hint: shim_work+0x0/0x10")]
    [TestCase("kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)")]
    [TestCase("kmemleak: unreferenced object 0xffff888012345678 (size 64):")]
    [TestCase("kmemleak: Kernel memory leak detector disabled")]
    [TestCase("Kernel panic - not syncing: Fatal exception")]
    [TestCase("Call Trace:")]
    [TestCase("sharpkvm: trap: index out of range at Greeter.cs:12")]
    [TestCase("Out of memory: Killed process 140 (selftests)")]
    public void ReportIsSeen(string line)
    {
        Assert.That(Titles([$"[   12.345678] {line}"]), Is.EqualTo((string[])[line]));
        Assert.That(Titles([.. Healthy, $"[   12.345678][  T140] {line}", .. Healthy]), Has.Length.GreaterThan(0));
    }

    [TestCase("[    5.100000] text", "text")]
    [TestCase("<4>[ 1234.100000] text", "text")]
    [TestCase("[    5.100000][   T12]  indented", " indented")]
    [TestCase("no time", "no time")]
    public void TimeIsTakenOff(string line, string text) => Assert.That(KernelLog.WithoutTime(line), Is.EqualTo(text));

    private static string[] Titles(IEnumerable<string> log) => [.. KernelLog.Scan(log).Select(report => report.Title)];
}
