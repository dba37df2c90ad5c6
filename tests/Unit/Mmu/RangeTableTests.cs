// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Tests.Host;

namespace SharpKvm.Tests.Mmu;

/// <summary>The library's table of ranges against a sorted dictionary.</summary>
internal sealed class RangeTableTests
{
    private const ulong Spacing = 4;

    private struct Range : IRange
    {
        public ulong First { get; init; }
        public ulong Size { get; init; }
    }

    /// <summary>Each number adds the range of its place if it is not there, and else removes it.</summary>
    [Test]
    public void HasWhatWasAddedAndNotRemoved() => Gen.ULong[0, 400].Array[0, 1000].Sample(places =>
    {
        using SimulatedHost host = new();
        Assert.That(RangeTable<Range>.TryCreate(out KernelRef<RangeTable<Range>> table));
        SortedDictionary<ulong, Range> model = [];
        foreach (ulong place in places)
        {
            Range range = new() { First = place * Spacing, Size = 1 + place % Spacing };
            bool removes = model.Remove(range.First);
            if (!removes)
                model.Add(range.First, range);
            KernelRef<RangeTable<Range>> old = table;
            Assert.That(old.Value.TryChange(removes ? range : default, removes ? default : range, out table));
            RangeTable<Range>.Free(old, in table.Value);
        }
        Assert.That(Firsts(table.Value.All), Is.EqualTo(model.Keys.Prepend(0ul)), "the empty range first");
        Assert.That(table.Value.Empty.Size, Is.Zero);
        for (ulong number = 0; number < 401 * Spacing; number++)
        {
            Range found = table.Value.Find(number);
            bool expected = model.TryGetValue(number / Spacing * Spacing, out Range range)
                && number - range.First < range.Size;
            Assert.That((number - found.First < found.Size, expected ? found.First : 0),
                Is.EqualTo((expected, expected ? range.First : 0)));
        }
        foreach (ulong number in new ulong[] { 0, 7, 801, 1700 })
        {
            ulong begin = model.Keys.LastOrDefault(first => first <= number);
            ulong[] empty = model.ContainsKey(begin) ? [] : [0];
            Assert.That(Firsts(table.Value.From(number)),
                Is.EqualTo(empty.Concat(model.Keys.Where(first => first >= begin))));
        }
        RangeTable<Range>.Free(table, default);
        Assert.That(host.BlocksInUse, Is.Zero);
    }, iter: 50);

    private static List<ulong> Firsts(RangeTable<Range>.Elements elements)
    {
        List<ulong> firsts = [];
        foreach (ref readonly Range range in elements)
            firsts.Add(range.First);
        return firsts;
    }
}
