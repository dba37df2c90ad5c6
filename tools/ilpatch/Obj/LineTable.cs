// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;
using System.Text;

namespace IlPatch.Obj;

internal readonly record struct SourceLine(string File, int Line);

/// <summary>The line table of the compiler's object: DWARF version 2 to 4, section 6.2.</summary>
internal sealed class LineTable
{
    private readonly SortedList<ulong, SourceLine> _rows = [];
    private readonly IList<ulong> _addresses;

    private LineTable(Dictionary<ulong, SourceLine> rows)
    {
        _rows = new(rows);
        _addresses = _rows.Keys;
    }

    /// <summary>The line of the code at this offset, looking back no further than its method.</summary>
    public SourceLine Find(ulong offset, ulong methodStart)
    {
        int low = 0, high = _addresses.Count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (_addresses[middle] <= offset)
            {
                low = middle + 1;
            }
            else
            {
                high = middle;
            }
        }

        return low > 0 && _addresses[low - 1] >= methodStart
            ? _rows.Values[low - 1]
            : low < _addresses.Count ? _rows.Values[low] : default;
    }

    public static LineTable Read(ElfObject elf, ElfSection code)
    {
        var rows = new Dictionary<ulong, SourceLine>();
        if (elf.Find(".debug_line") is { } section)
        {
            var reader = new Reader(section);
            while (!reader.AtEnd)
            {
                reader.ReadUnit(code, rows);
            }
        }

        return new LineTable(rows);
    }

    private sealed class Reader(ElfSection section)
    {
        private int _at;

        public bool AtEnd => _at >= section.Content.Length;

        public void ReadUnit(ElfSection code, Dictionary<ulong, SourceLine> rows)
        {
            int end = (int)U32() + _at;
            int version = U16();
            if (version is < 2 or > 4)
            {
                throw new ViolationException(new(".debug_line", "", 0), $"has version {version}; 2 to 4 are known");
            }

            int programStart = (int)U32() + _at;
            int minimumLength = U8();
            if (version >= 4)
            {
                U8();
            }

            U8();
            int lineBase = (sbyte)U8();
            int lineRange = U8();
            int opcodeBase = U8();
            var operandCounts = new int[opcodeBase];
            for (int i = 1; i < opcodeBase; i++)
            {
                operandCounts[i] = U8();
            }

            List<string> folders = [""];
            for (string folder = Text(); folder.Length > 0; folder = Text())
            {
                folders.Add(folder);
            }

            List<string> files = [""];
            for (string file = Text(); file.Length > 0; file = Text())
            {
                string folder = folders[(int)Uleb()];
                Uleb();
                Uleb();
                files.Add(folder.Length > 0 ? $"{folder.TrimEnd('/')}/{file}" : file);
            }

            _at = programStart;
            ulong address = 0;
            int fileIndex = 1, line = 1;
            bool isOurs = false;
            void Row()
            {
                if (isOurs && line > 0)
                {
                    rows[address] = new SourceLine(Clean(files[fileIndex]), line);
                }
            }

            while (_at < end)
            {
                int opcode = U8();
                if (opcode >= opcodeBase)
                {
                    int adjusted = opcode - opcodeBase;
                    address += (ulong)(adjusted / lineRange * minimumLength);
                    line += lineBase + (adjusted % lineRange);
                    Row();
                    continue;
                }

                switch (opcode)
                {
                    case 0:
                        int length = (int)Uleb();
                        int next = _at + length;
                        int extended = U8();
                        if (extended == 2)
                        {
                            ElfRelocation where = section.RelocationsIn((ulong)_at, 8).First();
                            isOurs = where.Symbol.Section == code;
                            address = where.Symbol.Value + (ulong)where.Addend;
                        }
                        else if (extended == 1)
                        {
                            address = 0;
                            fileIndex = 1;
                            line = 1;
                            isOurs = false;
                        }

                        _at = next;
                        break;
                    case 1:
                        Row();
                        break;
                    case 2:
                        address += Uleb() * (ulong)minimumLength;
                        break;
                    case 3:
                        line += (int)Sleb();
                        break;
                    case 4:
                        fileIndex = (int)Uleb();
                        break;
                    case 8:
                        address += (ulong)((255 - opcodeBase) / lineRange * minimumLength);
                        break;
                    case 9:
                        address += (ulong)U16();
                        break;
                    default:
                        for (int i = 0; i < operandCounts[opcode]; i++)
                        {
                            Uleb();
                        }

                        break;
                }
            }
        }

        /// <summary>Paths are mapped to the project's root by the C# compiler and start with "./".</summary>
        private static string Clean(string path) => path.StartsWith("./", StringComparison.Ordinal) ? path[2..] : path;

        private byte U8() => section.Content[_at++];

        private int U16()
        {
            _at += 2;
            return BinaryPrimitives.ReadUInt16LittleEndian(section.Content.AsSpan(_at - 2));
        }

        private uint U32()
        {
            _at += 4;
            return BinaryPrimitives.ReadUInt32LittleEndian(section.Content.AsSpan(_at - 4));
        }

        private ulong Uleb()
        {
            ulong value = 0;
            for (int shift = 0; ; shift += 7)
            {
                byte part = U8();
                value |= (ulong)(part & 0x7f) << shift;
                if (part < 0x80)
                {
                    return value;
                }
            }
        }

        private long Sleb()
        {
            long value = 0;
            for (int shift = 0; ;)
            {
                byte part = U8();
                value |= (long)(part & 0x7f) << shift;
                shift += 7;
                if (part < 0x80)
                {
                    return shift < 64 && (part & 0x40) != 0 ? value | (-1L << shift) : value;
                }
            }
        }

        private string Text()
        {
            int end = Array.IndexOf(section.Content, (byte)0, _at);
            string text = Encoding.UTF8.GetString(section.Content, _at, end - _at);
            _at = end + 1;
            return text;
        }
    }
}
