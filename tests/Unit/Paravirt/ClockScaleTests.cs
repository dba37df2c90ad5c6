// SPDX-License-Identifier: GPL-2.0-only
using System.Numerics;
using CsCheck;
using NUnit.Framework;
using SharpKvm.Paravirt;

namespace SharpKvm.Tests.Paravirt;

/// <summary>The scale of the clock page against exact arithmetic.</summary>
public class ClockScaleTests
{
    [TestCase(2_000_000u, 0x8000_0000u, 0)]
    [TestCase(1_000_000u, 0x8000_0000u, 1)]
    [TestCase(3_000_000u, 0xaaaa_aaaau, -1)]
    [TestCase(4_000_000u, 0x8000_0000u, -1)]
    public void RatesHaveTheScaleThatTheFormatDefines(uint khz, uint multiplier, int shift)
    {
        ClockScale scale = new(khz);
        Assert.That((scale.Multiplier, (int)scale.Shift), Is.EqualTo((multiplier, shift)));
    }

    [Test]
    public void NoRateMakesALoopOrLosesTheHighestBit([Values(0u, 1u, 999_999u, 1_000_001u, uint.MaxValue)] uint khz) =>
        Assert.That(new ClockScale(khz).Multiplier >> 31, Is.EqualTo(1));

    /// <summary>The multiplier has 32 bits: the error is below one part in 2^31, and the two roundings'.</summary>
    [Test]
    public void NanosecondsAreTheExactQuotientRoundedDown() =>
        Gen.Select(Gen.UInt[100_000, 10_000_000], Gen.ULong[0, 1ul << 60]).Sample((khz, ticks) =>
        {
            ulong value = new ClockScale(khz).ToNanoseconds(ticks);
            BigInteger exact = (BigInteger)ticks * 1_000_000 / khz;
            Assert.That((BigInteger)value, Is.LessThanOrEqualTo(exact));
            Assert.That(exact - value, Is.LessThanOrEqualTo((exact >> 31) + 12));
        }, iter: 20_000, seed: "0N0XIzNsQ0O2", threads: 1);

    [Test]
    public void TheGuestsFormulaGivesTheSame() =>
        Gen.Select(Gen.UInt[100_000, 10_000_000], Gen.ULong[0, 1ul << 60]).Sample((khz, ticks) =>
        {
            ClockScale scale = new(khz);
            Assert.That(scale.ToNanoseconds(ticks),
                Is.EqualTo(GuestClock.Scale(ticks, scale.Multiplier, scale.Shift)));
        }, iter: 20_000, seed: "0N0XIzNsQ0O2", threads: 1);
}

/// <summary>How a guest reads the clock (the kernel's documentation of MSR_KVM_SYSTEM_TIME).</summary>
internal static class GuestClock
{
    public static ulong Scale(ulong ticks, uint multiplier, int shift)
    {
        BigInteger shifted = shift < 0 ? (BigInteger)ticks >> -shift : ((BigInteger)ticks << shift) & ulong.MaxValue;
        return (ulong)((shifted * multiplier >> 32) & ulong.MaxValue);
    }
}
