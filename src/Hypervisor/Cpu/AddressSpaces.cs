// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>The identifiers that vCPUs have, each from its creation to its end.</summary>
internal static class AddressSpaces
{
    private const int Words = 64;

    /// <summary>How many the CPUs tell apart.</summary>
    public static uint Count;

    private static Set s_taken;

    [InlineArray(Words)] private struct Set { private ulong _first; }

    public static Asid Allocate()
    {
        uint count = Math.Min(Count, Words * 64);
        for (uint asid = Asid.Shared + 1; asid < count; asid++)
        {
            ref ulong word = ref s_taken[(int)(asid / 64)];
            ulong bit = 1ul << (int)(asid % 64);
            if ((Volatile.Read(ref word) & bit) == 0 && (Interlocked.Or(ref word, bit) & bit) == 0)
                return new Asid(asid);
        }
        return new Asid(Asid.Shared);
    }

    public static void Free(Asid asid)
    {
        if (asid.IsOwn)
            Interlocked.And(ref s_taken[(int)(asid.Value / 64)], ~(1ul << (int)(asid.Value % 64)));
    }
}
