// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;

namespace SharpKvm.InVm.Harness;

/// <summary>What a guest under memory load says is believed only when it is right.</summary>
[TestFixture]
public sealed class GuestLoadTests
{
    private const string Sum = "e144710831fd3acedc30283e1dec0e84";

    private static readonly GuestBoot Guest = new() { Cpus = 1, LoadBlocks = 12 };

    [Test]
    public void WholeRunIsRight() => Assert.That(Faults(Round(1, up: 5), Round(2, up: 6), Round(3, up: 6)), Is.Empty);

    [Test]
    public void WhatWasForgottenDoesNotCount() => Assert.That(
        Faults(Round(1, up: 5), "\n-- saved\n", Round(2, up: 6), "\n-- loaded\n", Round(2, up: 5.5)), Is.Empty);

    [Test]
    public void SilenceIsFound() => Assert.That(Faults("Hello\n"), Is.EqualTo((string[])["CPU 0 says nothing"]));

    [Test]
    public void LostRoundIsFound() =>
        Assert.That(Faults(Round(1, up: 5), Round(3, up: 7)), Has.One.StartsWith("after"));

    [Test]
    public void RoundThatCameTwiceIsFound() =>
        Assert.That(Faults(Round(1, up: 5), Round(1, up: 5)), Has.One.StartsWith("after"));

    [Test]
    public void WrongMemoryIsFound()
    {
        Assert.That(Faults(Round(1, up: 5).Replace("right", "wrong")), Has.One.StartsWith("memory is wrong"));
        Assert.That(Faults(Round(1, up: 5).Replace("e144", "e145")), Has.One.StartsWith("memory is wrong"));
    }

    [Test]
    public void ClockThatWentBackIsFound() =>
        Assert.That(Faults(Round(1, up: 5), Round(2, up: 4.9)), Has.One.StartsWith("the clock went back"));

    [Test]
    public void ComplaintOfTheGuestsKernelIsFound() =>
        Assert.That(Faults(Round(1, up: 5), "[    5.5] BUG: stack guard page was hit\n"), Has.One.StartsWith("BUG"));

    private static IEnumerable<string> Faults(params string[] console) =>
        GuestLoad.Faults(string.Concat(console).Replace("\n", "\r\n"), Guest);

    private static string Round(int number, double up) => string.Create(
        CultureInfo.InvariantCulture,
        $"[    {up:0.000000}] cpu 0 round {number}: changing right, fixed {Sum}, up {up:0.00}, "
            + $"date {1_795_642_000 + (int)up}\n");
}
