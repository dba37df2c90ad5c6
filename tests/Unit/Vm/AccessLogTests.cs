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
        AccessList log = default;
        log.TryAdd(AccessKind.Read, 0x1000, 4);
        log.Answer(7);
        Assert.That((log.TryReplay(AccessKind.Read, 0x1000, 4, out ulong data), data), Is.EqualTo((true, 7ul)));
        Assert.That(log.TryReplay(AccessKind.Read, 0x1000, 4, out _), Is.False);
        log.Position = 0;
        Assert.That((log.TryReplay(AccessKind.Read, 0x1000, 4, out data), data), Is.EqualTo((true, 7ul)));
    }

    [Test]
    public void AnswersKeepTheirOrder()
    {
        AccessList log = default;
        log.TryAdd(AccessKind.Read, 0x1000, 4);
        log.Answer(1);
        log.TryReplay(AccessKind.Read, 0x1000, 4, out _);
        log.TryAdd(AccessKind.Read, 0x1000, 4);
        log.Answer(2);
        log.Position = 0;
        log.TryReplay(AccessKind.Read, 0x1000, 4, out ulong first);
        log.TryReplay(AccessKind.Read, 0x1000, 4, out ulong second);
        Assert.That((first, second), Is.EqualTo((1ul, 2ul)));
    }

    [TestCase(nameof(AccessKind.PortRead), 0x1000ul, 4u)]
    [TestCase(nameof(AccessKind.Read), 0x1004ul, 4u)]
    [TestCase(nameof(AccessKind.Read), 0x1000ul, 8u)]
    public void AnotherAccessEndsWhatIsKnown(string kind, ulong address, uint length)
    {
        AccessList log = default;
        log.TryAdd(AccessKind.Read, 0x1000, 4);
        log.Answer(7);
        Assert.That(log.TryReplay(Enum.Parse<AccessKind>(kind), address, length, out _), Is.False);
        Assert.That(log.Count, Is.Zero);
    }

    [Test]
    public void TheLogSaysWhenItIsFull()
    {
        AccessList log = default;
        ulong accesses = 0;
        while (log.TryAdd(AccessKind.Read, accesses, 1))
            Assert.That(++accesses, Is.LessThan(1000));
        Assert.That((ulong)log.Count, Is.EqualTo(accesses));
    }

    [Test]
    public void WritesLeaveInTheOrderInWhichTheyCame()
    {
        AccessList writes = default;
        Assert.That(writes.TryAdd(AccessKind.Write, 0x1000, 4, 1) && writes.TryAdd(AccessKind.Write, 0x2000, 2, 2));
        Assert.That(writes.Take().Address, Is.EqualTo(0x1000));
        Assert.That(writes.Take().Address, Is.EqualTo(0x2000));
        Assert.That(writes.IsAtEnd);
    }

    [Test]
    public void WritesBeyondTheCapacityAreRefused()
    {
        AccessList writes = default;
        int count = 0;
        while (count < 1000 && writes.TryAdd(AccessKind.Write, 0x1000, 1))
            count++;
        Assert.That(count, Is.InRange(16, 999));
    }
}
