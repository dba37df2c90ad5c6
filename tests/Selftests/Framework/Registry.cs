// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>All tests, in the order in which they run.</summary>
static class Registry
{
    public static IEnumerable<TestCase> All =>
    [
        .. ApiTests.All,
        .. ErrorTests.All,
        .. PortIoTests.All,
        .. MmioTests.All,
        .. EmulatorTests.All,
        .. DifferentialTests.All,
        .. ExitTests.All,
        .. MsrTests.All,
        .. MemoryTests.All,
        .. LargePageTests.All,
        .. DirtyTests.All,
        .. MemoryStressTests.All,
        .. StateTests.All,
        .. EventTests.All,
        .. DebugTests.All,
        .. SignalTests.All,
        .. ModeTests.All,
        .. HostStateTests.All,
        .. LapicTests.All,
        .. X2ApicTests.All,
        .. LapicTimerTests.All,
        .. IoapicTests.All,
        .. PicTests.All,
        .. PitTests.All,
        .. RoutingTests.All,
        .. IrqfdTests.All,
        .. IoeventfdTests.All,
        .. CoalescedTests.All,
        .. SplitTests.All,
        .. SmpTests.All,
        .. ClockTests.All,
        .. ParavirtTests.All,
        .. OrderTests.All,
        .. StartupTests.All,
        .. SecurityTests.All,
        .. LifecycleTests.All,
        .. HotplugTests.All,
        .. ModuleTests.All,
        .. ContainmentTests.All,
        .. FaultTests.All,
    ];

    /// <summary>Programs that tests start by <c>--run-one</c>; they are not in the list.</summary>
    public static IEnumerable<TestCase> Helpers =>
    [
        new("helper/endless", LifecycleTests.RunEndlessly),
        new("helper/dirty", HostStateTests.RunDirty),
        new("helper/memory_stress", MemoryStressTests.RunLong),
    ];
}
