// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm;

/// <summary>What a fixture runs the selftests on.</summary>
public interface ISelftestSuite
{
    static abstract SelftestLane Lane { get; }
}

/// <summary>Every case of the selftest program is a case here; one L1 boot per fixture runs them all.</summary>
public abstract class SelftestFixture<TSuite> where TSuite : ISelftestSuite
{
    /// <summary>The program's own list.</summary>
    protected static IEnumerable<TestCaseData> Cases =>
        TSuite.Lane.Cases.Select(name => new TestCaseData(name).SetArgDisplayNames(name));

    private static SelftestRun Run => SelftestRun.On(TSuite.Lane);

    [OneTimeSetUp]
    public void LaneHasTheKernel()
    {
        if (TSuite.Lane.Machine.BochsModel is not null && L1Kernel.Default.IsDebug)
        {
            Assert.Ignore("a kernel that checks itself takes too long in Bochs");
        }

        if (TSuite.Lane.Machine.Missing is { } why)
        {
            Assert.Ignore(why);
        }
    }

    [Test, Order(0)]
    public void ProgramIsBuiltAndLists() =>
        Assert.That(SelftestRun.List(), Is.Not.Empty, $"{SelftestRun.Program} is missing or lists nothing");

    [TestCaseSource(nameof(Cases))]
    public void Case(string name)
    {
        KtapCase result = Run[name];
        foreach (string line in result.Diagnostics)
        {
            TestContext.Out.WriteLine(line);
        }

        switch (result.Outcome)
        {
            case KtapOutcome.Failed:
                Assert.Fail(string.Join('\n', [result.Reason, .. result.Diagnostics]));
                break;
            case KtapOutcome.Skipped:
                Assert.Ignore(result.Reason);
                break;
        }
    }

    [Test]
    public void KernelLogIsClean() =>
        Assert.That(
            Run.Reports().Select(found => $"in {found.Group}: {string.Join('\n', found.Report.Lines)}"), Is.Empty);

    [Test]
    public void MachineCompletesInOneBootAndModuleUnloads()
    {
        Assert.That(Run.Boots.Select(boot => boot.End), Is.EqualTo((L1End[])[L1End.Completed]),
            string.Join('\n', Run.Boots.Select(boot => boot.Describe())));
        Assert.That(Run.Unloaded, Is.True, Run.Boots[0].Describe());
    }
}

/// <summary>On the project's module.</summary>
[TestFixture]
public sealed class SelftestsOnSharpKvm : SelftestFixture<SelftestsOnSharpKvm>, ISelftestSuite
{
    public static SelftestLane Lane { get; } = SelftestLane.SharpKvmOn(SharpKvm.Lab.Lane.SvmNpt);
}

/// <summary>On Linux's own KVM: what fails here is wrong in the selftest, not in the module.</summary>
[TestFixture, Category(Tier.Full)]
public sealed class SelftestsOnStockKvm : SelftestFixture<SelftestsOnStockKvm>, ISelftestSuite
{
    public static SelftestLane Lane { get; } = SelftestLane.StockOn(SharpKvm.Lab.Lane.SvmNpt);
}

/// <summary>What Intel's processors do differently: entries, exits, events, state.</summary>
[TestFixture]
public sealed class ShortSelftestsOnVmx : SelftestFixture<ShortSelftestsOnVmx>, ISelftestSuite
{
    public static SelftestLane Lane { get; } = SelftestLane.SharpKvmOn(SharpKvm.Lab.Lane.VmxEpt) with
    {
        Groups = ["exit", "mode", "msr", "event", "debug", "memory", "mmio", "portio", "signal", "emulator", "state",
            "smp", "host", "lapic", "irqfd"],
    };
}

/// <summary>All of them.</summary>
[TestFixture, Category(Tier.Vmx), Category(Tier.Full)]
public sealed class SelftestsOnVmx : SelftestFixture<SelftestsOnVmx>, ISelftestSuite
{
    public static SelftestLane Lane { get; } = SelftestLane.SharpKvmOn(SharpKvm.Lab.Lane.VmxEpt) with
    {
        Name = "selftests-vmx-ept-all",
        // The CPU ends interrupts by itself, so the guest is not offered to spare it that; nor is it by stock KVM.
        Except = ["clock/pv_eoi"],
    };
}

/// <summary>Where the CPU has the APIC-access page, and software delivers interrupts.</summary>
[TestFixture, Category(Tier.Vmx), Category(Tier.Full)]
public sealed class ShortSelftestsOnVmxOld : SelftestFixture<ShortSelftestsOnVmxOld>, ISelftestSuite
{
    public static SelftestLane Lane { get; } = SelftestLane.SharpKvmOn(SharpKvm.Lab.Lane.VmxOld) with
    {
        Groups = ["event", "memory", "dirty", "lapic", "ioapic", "irqfd", "startup"],
    };
}

/// <summary>A second emulator's opinion on AMD's.</summary>
[TestFixture, Category(Tier.Ryzen), Category(Tier.Full)]
public sealed class SelftestsOnRyzen : SelftestFixture<SelftestsOnRyzen>, ISelftestSuite
{
    public static SelftestLane Lane { get; } = SelftestLane.SharpKvmOn(SharpKvm.Lab.Lane.SvmBochs) with
    {
        // But for those with steps or random code, which end Bochs or never end there.
        Groups =
        [
            "api", "clock", "coalesced", "containment", "dirty", "errors", "event", "exit", "host", "ioapic",
            "ioeventfd", "irqfd", "lapic", "large", "memory", "mmio", "mode", "module", "msr", "order", "pic", "pit",
            "portio", "routing", "signal", "smp", "split", "startup", "state",
        ],
        // What Bochs fails on Linux's own KVM, too: CR2 that an entry loads, INT in real mode and from ring 3.
        Except =
        [
            "mode/real_interrupt", "mode/privilege_change_and_return", "mode/task_gate", "event/int_instruction",
            "event/exception_page_fault_injected", "state/sregs_guest_observes", "clock/async_page_fault",
        ],
    };
}

/// <summary>All of them, on Intel's first processors: shadow tables, and real mode in the emulator.</summary>
[TestFixture, Category(Tier.Vmx), Category(Tier.Full)]
public sealed class SelftestsOnVmxShadow : SelftestFixture<SelftestsOnVmxShadow>, ISelftestSuite
{
    public static SelftestLane Lane { get; } = SelftestLane.SharpKvmOn(SharpKvm.Lab.Lane.VmxShadow) with
    {
        Except =
        [
            SelftestsOnShadowTables.TlbFlush,
            // Instructions that the emulator does not know, or does not leave to a debugger, in real mode.
            "differential/real_plain", "differential/real_other_size", "debug/software_breakpoint_real",
        ],
    };
}

/// <summary>What shadow tables have a part in, on AMD's processors without nested paging.</summary>
[TestFixture]
public sealed class ShortSelftestsOnShadowTables : SelftestFixture<ShortSelftestsOnShadowTables>, ISelftestSuite
{
    public static SelftestLane Lane { get; } = SelftestLane.SharpKvmOn(SharpKvm.Lab.Lane.SvmShadow) with
    {
        Groups = ["exit", "mode", "memory", "large", "dirty", "mmio", "emulator", "state", "security"],
        Except = [SelftestsOnShadowTables.Task],
    };
}

/// <summary>All of them.</summary>
[TestFixture, Category(Tier.Full)]
public sealed class SelftestsOnShadowTables : SelftestFixture<SelftestsOnShadowTables>, ISelftestSuite
{
    /// <summary>The emulator switches tasks without asking the hypervisor, which has other page tables then.</summary>
    internal const string Task = "mode/task_switch_call_and_return";

    /// <summary>User space changes the tables of a running guest, which no one can know of who shadows them.</summary>
    internal const string TlbFlush = "clock/pv_tlb_flush";

    public static SelftestLane Lane { get; } = SelftestLane.SharpKvmOn(SharpKvm.Lab.Lane.SvmShadow) with
    {
        Name = "selftests-svm-shadow-all",
        Except = [TlbFlush, Task],
    };
}
