// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Vm;

namespace SharpKvm.Tests.Vm;

/// <summary>What is kept of an emulated instruction while user space serves its accesses.</summary>
public class AccessLogTests
{
    [Test]
    public void AnAnswerIsGivenAgainInEveryRun()
    {
        ReplayLog log = default;
        log.TryAppend(ReplayKind.MmioRead, 0x1000, 4);
        log.Answer(7);
        Assert.That((log.TryReplay(ReplayKind.MmioRead, 0x1000, 4, out ulong data), data), Is.EqualTo((true, 7ul)));
        Assert.That(log.TryReplay(ReplayKind.MmioRead, 0x1000, 4, out _), Is.False);
        log.Answer(8);
        Assert.That((log.TryReplay(ReplayKind.MmioRead, 0x1000, 4, out data), data), Is.EqualTo((true, 7ul)));
    }

    [Test]
    public void AnswersKeepTheirOrder()
    {
        ReplayLog log = default;
        log.TryAppend(ReplayKind.MmioRead, 0x1000, 4);
        log.Answer(1);
        log.TryReplay(ReplayKind.MmioRead, 0x1000, 4, out _);
        log.TryAppend(ReplayKind.MmioRead, 0x1000, 4);
        log.Answer(2);
        log.TryReplay(ReplayKind.MmioRead, 0x1000, 4, out ulong first);
        log.TryReplay(ReplayKind.MmioRead, 0x1000, 4, out ulong second);
        Assert.That((first, second), Is.EqualTo((1ul, 2ul)));
    }

    [TestCase(nameof(ReplayKind.PortRead), 0x1000ul, 4u)]
    [TestCase(nameof(ReplayKind.MmioRead), 0x1004ul, 4u)]
    [TestCase(nameof(ReplayKind.MmioRead), 0x1000ul, 8u)]
    public void AnotherAccessEndsWhatIsKnown(string kind, ulong address, uint length)
    {
        ReplayLog log = default;
        log.TryAppend(ReplayKind.MmioRead, 0x1000, 4);
        log.Answer(7);
        Assert.That(log.TryReplay(Enum.Parse<ReplayKind>(kind), address, length, out _), Is.False);
        Assert.That(log.Count, Is.Zero);
    }

    [Test]
    public void TheLogSaysWhenItIsFull()
    {
        ReplayLog log = default;
        ulong accesses = 0;
        while (log.TryAppend(ReplayKind.MmioRead, accesses, 1))
            Assert.That(++accesses, Is.LessThan(1000));
        Assert.That((ulong)log.Count, Is.EqualTo(accesses));
    }

    [Test]
    public void WritesLeaveInTheOrderInWhichTheyCame()
    {
        PostedWrites writes = default;
        Assert.That(writes.TryAdd(0x1000, 4, 1, refused: false) && writes.TryAdd(0x2000, 2, 2, refused: false));
        Assert.That(writes.Take().Address, Is.EqualTo(0x1000));
        Assert.That(writes.Take().Address, Is.EqualTo(0x2000));
        Assert.That(writes.IsEmpty);
    }

    [Test]
    public void WritesBeyondTheCapacityAreRefused()
    {
        PostedWrites writes = default;
        int count = 0;
        while (count < 1000 && writes.TryAdd(0x1000, 1, 0, refused: false))
            count++;
        Assert.That(count, Is.InRange(16, 999));
    }
}
