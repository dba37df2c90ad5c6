// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>A set of vectors. Changes need a lock, <see cref="Contains"/> does not.</summary>
[InlineArray(Words)] internal struct VectorSet
{
    public const int Words = 4;

    private ulong _word;

    public readonly bool Contains(byte vector) => (Volatile.Read(in this[vector >> 6]) >> (vector & 63) & 1) != 0;

    public void Add(byte vector) => Volatile.Write(ref this[vector >> 6], this[vector >> 6] | 1ul << (vector & 63));

    /// <summary>
    /// Becomes another set; what is in both is never missing meanwhile. False: it was that one.
    /// </summary>
    public bool Assign(in VectorSet other)
    {
        bool changes = false;
        for (int i = 0; i < Words; i++)
        {
            changes |= this[i] != other[i];
            Volatile.Write(ref this[i], other[i]);
        }
        return changes;
    }
}
