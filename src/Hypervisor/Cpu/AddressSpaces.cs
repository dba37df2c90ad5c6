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
        int found = AtomicBits.AddFirst(s_taken, (int)Asid.Shared + 1, (int)Math.Min(Count, Words * 64));
        return new Asid(found >= 0 ? (uint)found : Asid.Shared);
    }

    public static void Free(Asid asid)
    {
        if (asid.IsOwn)
            AtomicBits.Remove(s_taken, (int)asid.Value);
    }
}
