// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Lab;

/// <summary>Reads a kernel's ELF file (System V ABI, chapters 4 and 5): 64 bits, little endian.</summary>
internal static class KernelElf
{
    private const uint Load = 1, Note = 4;

    /// <summary>The note that names the 32-bit entry point, and who defines it (xen/elfnote.h).</summary>
    private const uint EntryNote = 18;

    private const int HeadersOffset = 32, HeaderCount = 56;

    /// <summary>What is to be loaded: the physical address, and where it stands in the file.</summary>
    public static IEnumerable<(uint Address, Range Bytes)> Segments(byte[] file) =>
        from header in Headers(file) where header.Type == Load select ((uint)header.Address, header.Bytes);

    /// <summary>The 32-bit entry point for virtual machines.</summary>
    /// <exception cref="LabException">It has none.</exception>
    public static uint EntryPoint(byte[] file)
    {
        foreach (ProgramHeader header in Headers(file).Where(header => header.Type == Note))
        {
            ReadOnlySpan<byte> notes = file.AsSpan(header.Bytes);
            while (notes.Length >= 3 * sizeof(uint))
            {
                ReadOnlySpan<uint> head = MemoryMarshal.Cast<byte, uint>(notes)[..3];
                int name = 3 * sizeof(uint), content = name + Align(head[0]);
                if (head[2] == EntryNote && notes[name..].StartsWith("Xen\0"u8))
                {
                    return MemoryMarshal.Read<uint>(notes[content..]);
                }

                notes = notes[(content + Align(head[1]))..];
            }
        }

        throw new LabException("the kernel has no entry point for virtual machines (CONFIG_PVH)");
    }

    private static int Align(uint length) => (int)((length + 3) & ~3u);

    private static IEnumerable<ProgramHeader> Headers(byte[] file)
    {
        if (!file.AsSpan().StartsWith("\u007fELF"u8))
        {
            throw new LabException("the kernel is no ELF file");
        }

        int start = (int)MemoryMarshal.Read<ulong>(file.AsSpan(HeadersOffset));
        int count = MemoryMarshal.Read<ushort>(file.AsSpan(HeaderCount));
        return MemoryMarshal.Cast<byte, ProgramHeader>(file.AsSpan(start))[..count].ToArray();
    }

    /// <summary><c>Elf64_Phdr</c>.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private readonly struct ProgramHeader
    {
        public readonly uint Type;
        private readonly uint flags;
        private readonly ulong offset;
        private readonly ulong virtualAddress;
        public readonly ulong Address;
        private readonly ulong fileSize;
        private readonly ulong memorySize;
        private readonly ulong alignment;

        public Range Bytes => (int)offset..(int)(offset + fileSize);
    }
}
