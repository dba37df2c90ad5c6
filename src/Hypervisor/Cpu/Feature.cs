// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>Features that the core asks about: 32 times the row in <see cref="FeatureWords"/>, plus the bit.</summary>
internal enum Feature : ushort
{
    Pcid = 0 * 32 + 17, X2apic = 0 * 32 + 21, TscDeadline = 0 * 32 + 24, Xsave = 0 * 32 + 26,
    Fsgsbase = 2 * 32 + 0, Smep = 2 * 32 + 7, Invpcid = 2 * 32 + 10, Smap = 2 * 32 + 20,
    Umip = 3 * 32 + 2, Pku = 3 * 32 + 3, La57 = 3 * 32 + 16, Rdpid = 3 * 32 + 22,
    Nx = 8 * 32 + 20, FxsrOpt = 8 * 32 + 25, Rdtscp = 8 * 32 + 27, LongMode = 8 * 32 + 29,
    Ibpb = 10 * 32 + 12, Ibrs = 10 * 32 + 14,
}

/// <summary>
/// The feature words of CPUID (SDM vol. 2, CPUID; APM vol. 3, appendix E): which bits this hypervisor can give to a
/// guest where the host has them. Nested virtualization, the PMU, AMX, XSAVES and controls of speculation other than
/// IBPB are not among them, nor what needs an interrupt controller in the kernel (x2APIC, TSC deadline).
/// </summary>
internal static class FeatureWords
{
    public const int Count = 12;
    private const int Columns = 5;

    /// <summary>
    /// Rows of leaf, subleaf, register (EAX = 0), bits that the host must have, bits that are there whatever it has.
    /// </summary>
    private static ReadOnlySpan<uint> Table =>
    [
        0x00000001, 0, 2, 0x76da3203, 1u << 31 | 1 << 21 | 1 << 24, // SSE3 … RDRAND; hypervisor, x2APIC, TSC deadline
        0x00000001, 0, 3, 0x078bfbff, 0,
        0x00000007, 0, 1, 0xf1bf27e9, 1u << 1, // FSGSBASE, BMI, AVX2, SMEP, INVPCID, AVX-512, SMAP, SHA; TSC_ADJUST
        0x00000007, 0, 2, 0x1a405f4e, 0, // UMIP, PKU, AVX-512, VAES, RDPID, CLDEMOTE, MOVDIRI, MOVDIR64B
        0x00000007, 1, 0, 0x00000030, 0, // AVX-VNNI, AVX512-BF16
        0x00000007, 0, 3, 0x0080411c, 0, // FSRM, AVX-512, SERIALIZE
        0x0000000d, 1, 0, 0x00000007, 0, // XSAVEOPT, XSAVEC, XGETBV with ECX=1
        0x80000001, 0, 2, 0x006109f3, 0, // LAHF, CMP_LEGACY, CR8, ABM, SSE4A, 3DNOW prefetch, XOP, FMA4, TBM, TOPOEXT
        0x80000001, 0, 3, 0xefd3fbff, 0,
        0x80000007, 0, 3, 0x00000100, 0, // invariant TSC
        0x80000008, 0, 1, 0x04001205, 0, // CLZERO, error pointers, WBNOINVD, IBPB, SSB_NO
        0x80000021, 0, 0, 0x00000045, 0, // no nested data breakpoints, LFENCE serializes, null selector clears base
    ];

    public static uint Leaf(int word) => Table[word * Columns];
    public static uint Subleaf(int word) => Table[word * Columns + 1];
    public static int Register(int word) => (int)Table[word * Columns + 2];

    /// <summary>The bits of a word that a guest may see, out of what the host has.</summary>
    private static uint Filter(int word, uint hostBits) =>
        hostBits & Table[word * Columns + 3] | Table[word * Columns + 4];

    /// <summary>Filters the words that stand in a leaf of the host.</summary>
    public static void Filter(uint leaf, uint subleaf, ref CpuidLeaf values)
    {
        for (int word = 0; word < Count; word++)
        {
            if (Leaf(word) == leaf && Subleaf(word) == subleaf)
                values[Register(word)] = Filter(word, values[Register(word)]);
        }
    }

    /// <summary>A word of the host, filtered.</summary>
    public static uint Supported(int word)
    {
        bool exists = Leaf(word) <= CpuidLeaf.OfHost(Leaf(word) & 0x80000000).Eax;
        CpuidLeaf host = exists ? CpuidLeaf.OfHost(Leaf(word), Subleaf(word)) : default;
        return Filter(word, host[Register(word)]);
    }

    public static bool IsSupported(Feature feature) =>
        (Supported((int)feature / 32) >> ((int)feature % 32) & 1) != 0;
}
