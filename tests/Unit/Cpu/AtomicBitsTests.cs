// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;

namespace SharpKvm.Tests.Cpu;

/// <summary>The library's set of bits against a sorted set.</summary>
internal sealed class AtomicBitsTests
{
    private const int Size = 200;

    [Test]
    public void HasWhatWasAddedAndNotRemoved() => Gen.Int[0, Size - 1].Array[0, 500].Sample(numbers =>
    {
        ulong[] bits = new ulong[(Size + 63) / 64];
        SortedSet<int> model = [];
        foreach (int number in numbers)
        {
            bool isNew = model.Add(number);
            Assert.That(AtomicBits.TryAdd(bits, number), Is.EqualTo(isNew));
            if (isNew)
                continue;
            model.Remove(number);
            AtomicBits.Remove(bits, number);
        }
        Assert.That(Enumerable.Range(0, Size).Where(n => (bits[n / 64] >> n & 1) != 0), Is.EqualTo(model));
        foreach (int free in Enumerable.Range(60, 70).Except(model).Order())
            Assert.That(AtomicBits.AddFirst(bits, 60, 130), Is.EqualTo(free));
        Assert.That(AtomicBits.AddFirst(bits, 60, 130), Is.EqualTo(-1));
    });

    [Test]
    public void GivesEachNumberToOneThread()
    {
        ulong[] bits = new ulong[64];
        int[] owners = new int[64 * 64];
        Parallel.For(0, owners.Length, _ =>
            Interlocked.Increment(ref owners[AtomicBits.AddFirst(bits, 0, owners.Length)]));
        Assert.That(owners, Is.All.EqualTo(1));
    }
}
