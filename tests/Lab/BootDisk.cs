// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;
using System.Text;

namespace SharpKvm.Lab;

/// <summary>
/// A raw disk that a BIOS boots Linux from at once: a first sector of our own (<c>Guest/boot-sector.S</c>), and behind
/// it what that one loads. The kernel is an ELF file with an entry point for virtual machines (CONFIG_PVH).
/// </summary>
public static class BootDisk
{
    /// <summary>Bytes of a cylinder at 16 heads and 63 sectors; the disk is a multiple of it.</summary>
    public const int CylinderSize = 16 * 63 * SectorSize;

    private const int SectorSize = 512;

    /// <summary>Memory that is zero in pieces of this size need not be loaded.</summary>
    private const int Piece = 1 << 20;

    /// <summary>Where the first sector has room for the entry point, and for ranges of 12 bytes from there on.</summary>
    private const int EntryOffset = 0x100, RangesOffset = 0x104, RangesEnd = 0x1fe, RangeSize = 12;

    /// <summary>Places in memory that the first sector knows, too.</summary>
    private const uint MemoryMap = 0x8000, StartInfo = 0x9000;

    private const uint Initramfs = 256 << 20;

    /// <summary>Writes the disk.</summary>
    /// <param name="path">The file.</param>
    /// <param name="kernel">The kernel, an ELF file.</param>
    /// <param name="initramfs">The initramfs.</param>
    /// <param name="commandLine">The kernel's command line.</param>
    /// <exception cref="LabException">The kernel is no such file.</exception>
    public static void Write(string path, byte[] kernel, byte[] initramfs, string commandLine)
    {
        using FileStream disk = File.Create(path);
        byte[] first = FirstSector();
        int nextRange = RangesOffset;
        disk.Write(first);
        BinaryPrimitives.WriteUInt32LittleEndian(first.AsSpan(EntryOffset), KernelElf.EntryPoint(kernel));
        foreach ((uint address, Range bytes) in KernelElf.Segments(kernel))
        {
            Load(address, kernel.AsSpan(bytes));
        }

        Load(Initramfs, initramfs);
        Load(StartInfo, StartInfoFor(initramfs.Length, commandLine));
        disk.SetLength((disk.Length + CylinderSize - 1) / CylinderSize * CylinderSize);
        disk.Position = 0;
        disk.Write(first);

        void Load(uint address, ReadOnlySpan<byte> content)
        {
            while (!content.IsEmpty)
            {
                int zeros = PiecesWhile(content, zero: true);
                int length = PiecesWhile(content[zeros..], zero: false);
                Put(address + (uint)zeros, content.Slice(zeros, length));
                address += (uint)(zeros + length);
                content = content[(zeros + length)..];
            }
        }

        void Put(uint address, ReadOnlySpan<byte> content)
        {
            if (content.IsEmpty)
            {
                return;
            }

            if (nextRange + (2 * RangeSize) > RangesEnd)
            {
                throw new LabException("the kernel has too many parts for the boot sector");
            }

            int sectors = (content.Length + SectorSize - 1) / SectorSize;
            foreach (uint value in (uint[])[address, (uint)(disk.Position / SectorSize), (uint)sectors])
            {
                BinaryPrimitives.WriteUInt32LittleEndian(first.AsSpan(nextRange), value);
                nextRange += sizeof(uint);
            }

            disk.Write(content);
            disk.Write(new byte[(sectors * SectorSize) - content.Length]);
        }
    }

    /// <summary>The bytes at the beginning that whole pieces of zeros, or of anything else, make up.</summary>
    private static int PiecesWhile(ReadOnlySpan<byte> content, bool zero)
    {
        int length = 0;
        while (length < content.Length
            && content.Slice(length, Math.Min(Piece, content.Length - length)).ContainsAnyExcept((byte)0) != zero)
        {
            length = Math.Min(length + Piece, content.Length);
        }

        return length;
    }

    /// <summary><c>struct hvm_start_info</c>, its one module and the command line (xen/arch-x86/hvm/start_info.h).</summary>
    private static byte[] StartInfoFor(int initramfsLength, string commandLine)
    {
        const int Modules = 64, CommandLine = 96;
        byte[] line = Encoding.ASCII.GetBytes(commandLine + "\0");
        byte[] info = new byte[CommandLine + line.Length];
        using var writer = new BinaryWriter(new MemoryStream(info));
        writer.Write((uint[])[0x336ec578, 1, 0, 1]);
        writer.Write((ulong[])[StartInfo + Modules, StartInfo + CommandLine, 0, MemoryMap]);
        writer.Seek(Modules, SeekOrigin.Begin);
        writer.Write((ulong[])[Initramfs, (ulong)initramfsLength, 0, 0]);
        writer.Write(line);
        return info;
    }

    private static void Write(this BinaryWriter writer, uint[] values) => Array.ForEach(values, writer.Write);

    private static void Write(this BinaryWriter writer, ulong[] values) => Array.ForEach(values, writer.Write);

    private static byte[] FirstSector()
    {
        string folder = Repository.Folder("lab", $"boot-sector-{Environment.ProcessId}");
        string source = Path.Combine(folder, "boot-sector.S"), target = Path.Combine(folder, "boot-sector");
        File.WriteAllText(source, Lab.Initramfs.Script("boot-sector.S"));
        Tool.Require("gcc",
        [
            "-m32", "-nostdlib", "-static", "-Wl,--build-id=none,-Ttext=0x7c00,--oformat=binary", source, "-o", target,
        ]);
        byte[] sector = File.ReadAllBytes(target);
        Directory.Delete(folder, recursive: true);
        return sector.Length == SectorSize
            ? sector
            : throw new LabException($"the boot sector has {sector.Length} bytes");
    }
}
