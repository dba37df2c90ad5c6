// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm;

/// <summary>NUnit categories.</summary>
internal static class Tier
{
    /// <summary>Left out of <c>make test</c>, part of <c>make test-full</c>.</summary>
    public const string Full = "Full";

    /// <summary>What <c>make test-vmx</c> runs; also part of <c>make test-full</c>.</summary>
    public const string Vmx = "Vmx";

    /// <summary>What <c>make test-ryzen</c> runs; also part of <c>make test-full</c>.</summary>
    public const string Ryzen = "Ryzen";
}
