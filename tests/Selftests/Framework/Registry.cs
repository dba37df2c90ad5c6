// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>All tests, in the order in which they run.</summary>
static class Registry
{
    public static IEnumerable<TestCase> All =>
    [
        .. PortIoTests.All,
    ];
}
