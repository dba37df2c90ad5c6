// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Interrupts;

namespace SharpKvm.Tests.Interrupts;

[TestFixture]
internal sealed class VectorSetTests
{
    [Test]
    public void ContainsWhatWasAdded() => Gen.Byte.Array[0, 300].Sample(vectors =>
    {
        VectorSet set = default, copy = default;
        copy.Add(1);
        foreach (byte vector in vectors)
            set.Add(vector);
        copy.Assign(in set);
        for (int vector = 0; vector < 256; vector++)
        {
            Assert.That(set.Contains((byte)vector), Is.EqualTo(vectors.Contains((byte)vector)));
            Assert.That(copy.Contains((byte)vector), Is.EqualTo(set.Contains((byte)vector)));
        }
        set.Assign(default);
        Assert.That(Enumerable.Range(0, 256).Any(vector => set.Contains((byte)vector)), Is.False);
    }, iter: 200);
}
