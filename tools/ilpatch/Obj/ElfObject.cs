// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;
using System.Text;

namespace IlPatch.Obj;

internal enum RelocationKind : uint
{
    Absolute64 = 1,
    Pc32 = 2,
    Plt32 = 4,
    Absolute32 = 10,
    Absolute32Signed = 11,
}

/// <summary>A section of a relocatable file. A section without bytes in the file (.bss) has zeroed content.</summary>
internal sealed class ElfSection(string name, uint type, ulong flags, byte[] content, ulong alignment)
{
    private const ulong Write = 1, Alloc = 2, Execute = 4;

    public string Name => name;

    public byte[] Content => content;

    public ulong Alignment => alignment;

    public bool IsAllocated => (flags & Alloc) != 0;

    public bool IsWritable => (flags & Write) != 0;

    public bool IsExecutable => (flags & Execute) != 0;

    public bool IsZero => type == 8;

    /// <summary>Sorted by offset.</summary>
    public List<ElfRelocation> Relocations { get; } = [];

    /// <summary>All relocations that start in the range.</summary>
    public IEnumerable<ElfRelocation> RelocationsIn(ulong start, ulong size)
    {
        int low = 0, high = Relocations.Count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (Relocations[middle].Offset < start)
            {
                low = middle + 1;
            }
            else
            {
                high = middle;
            }
        }

        for (; low < Relocations.Count && Relocations[low].Offset < start + size; low++)
        {
            yield return Relocations[low];
        }
    }
}

/// <param name="Section">Null for an undefined symbol.</param>
internal sealed record ElfSymbol(
    string Name, ElfSection? Section, ulong Value, ulong Size, bool IsFunction, bool IsSection, bool IsVisible);

internal readonly record struct ElfRelocation(ulong Offset, RelocationKind Kind, ElfSymbol Symbol, long Addend);

/// <summary>A 64-bit little-endian relocatable ELF file (gABI chapter 4, x86-64 psABI section 4.4).</summary>
internal sealed class ElfObject
{
    private const int SectionHeaderSize = 64, SymbolSize = 24, RelaSize = 24;

    private ElfObject(IReadOnlyList<ElfSection> sections, IReadOnlyList<ElfSymbol> symbols)
    {
        Sections = sections;
        Symbols = symbols;
    }

    public IReadOnlyList<ElfSection> Sections { get; }

    public IReadOnlyList<ElfSymbol> Symbols { get; }

    public ElfSection? Find(string name) => Sections.FirstOrDefault(section => section.Name == name);

    public static ElfObject Read(string path)
    {
        byte[] file = File.ReadAllBytes(path);
        if (file.Length < 64 || !file.AsSpan(0, 6).SequenceEqual("\u007fELF\u0002\u0001"u8)
            || BinaryPrimitives.ReadUInt16LittleEndian(file.AsSpan(16)) != 1
            || BinaryPrimitives.ReadUInt16LittleEndian(file.AsSpan(18)) != 62)
        {
            throw new ViolationException(new(path, "", 0), "is not a relocatable x86-64 ELF file");
        }

        int headers = (int)ReadU64(file, 40);
        int count = BinaryPrimitives.ReadUInt16LittleEndian(file.AsSpan(60));
        int namesIndex = BinaryPrimitives.ReadUInt16LittleEndian(file.AsSpan(62));
        ReadOnlyMemory<byte> Header(int i) => file.AsMemory(headers + (i * SectionHeaderSize), SectionHeaderSize);
        byte[] Content(int i)
        {
            ReadOnlySpan<byte> header = Header(i).Span;
            int size = (int)ReadU64(header, 32);
            return ReadU32(header, 4) == 8 ? new byte[size] : file.AsSpan((int)ReadU64(header, 24), size).ToArray();
        }

        byte[] names = Content(namesIndex);
        var sections = new List<ElfSection>();
        for (int i = 0; i < count; i++)
        {
            ReadOnlySpan<byte> header = Header(i).Span;
            sections.Add(new ElfSection(
                ReadName(names, ReadU32(header, 0)), ReadU32(header, 4), ReadU64(header, 8), Content(i),
                Math.Max(1, ReadU64(header, 48))));
        }

        List<ElfSymbol> symbols = [];
        for (int i = 0; i < count; i++)
        {
            ReadOnlySpan<byte> header = Header(i).Span;
            if (ReadU32(header, 4) == 2)
            {
                symbols = ReadSymbols(sections[i].Content, sections[(int)ReadU32(header, 40)].Content, sections);
            }
        }

        for (int i = 0; i < count; i++)
        {
            ReadOnlySpan<byte> header = Header(i).Span;
            if (ReadU32(header, 4) == 4)
            {
                ReadRelocations(sections[i].Content, symbols, sections[(int)ReadU32(header, 44)]);
            }
        }

        return new ElfObject(sections, symbols);
    }

    private static List<ElfSymbol> ReadSymbols(byte[] table, byte[] names, List<ElfSection> sections)
    {
        var symbols = new List<ElfSymbol>();
        for (int at = 0; at < table.Length; at += SymbolSize)
        {
            ReadOnlySpan<byte> entry = table.AsSpan(at, SymbolSize);
            int section = BinaryPrimitives.ReadUInt16LittleEndian(entry[6..]);
            int type = entry[4] & 15;
            bool isVisible = entry[4] >> 4 == 1 && (entry[5] & 3) == 0;
            ElfSection? home = section is 0 or >= 0xff00 ? null : sections[section];
            string name = type == 3 ? home!.Name : ReadName(names, ReadU32(entry, 0));
            symbols.Add(new ElfSymbol(
                name, home, ReadU64(entry, 8), ReadU64(entry, 16), type == 2, type == 3, isVisible));
        }

        return symbols;
    }

    private static void ReadRelocations(byte[] table, List<ElfSymbol> symbols, ElfSection target)
    {
        for (int at = 0; at < table.Length; at += RelaSize)
        {
            ReadOnlySpan<byte> entry = table.AsSpan(at, RelaSize);
            ulong info = ReadU64(entry, 8);
            target.Relocations.Add(new ElfRelocation(
                ReadU64(entry, 0), (RelocationKind)(uint)info, symbols[(int)(info >> 32)], (long)ReadU64(entry, 16)));
        }

        target.Relocations.Sort((left, right) => left.Offset.CompareTo(right.Offset));
    }

    private static uint ReadU32(ReadOnlySpan<byte> data, int at)
        => BinaryPrimitives.ReadUInt32LittleEndian(data[at..]);

    private static ulong ReadU64(ReadOnlySpan<byte> data, int at)
        => BinaryPrimitives.ReadUInt64LittleEndian(data[at..]);

    private static string ReadName(byte[] names, uint at)
        => Encoding.UTF8.GetString(names, (int)at, Array.IndexOf(names, (byte)0, (int)at) - (int)at);
}
