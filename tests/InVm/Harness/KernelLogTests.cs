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
