// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;
using SharpKvm.Cpu;

namespace SharpKvm.Tests.Emulator;

/// <summary>
/// Runs one 64-bit instruction on the processor that runs the tests, with all general registers, XMM registers and
/// flags set before and read after, and a window of memory at a fixed low address.
/// </summary>
internal sealed unsafe partial class NativeCpu : IDisposable
{
    public const ulong Window = 0x20000000;
    public const int WindowSize = 1 << 20;
    private const int PageSize = 4096;
    private const int In = PageSize, Out = In + 17 * 8, SavedRsp = Out + 17 * 8, Vectors = In + 512;

    private readonly byte* _code;

    private NativeCpu(byte* code) => _code = code;

    /// <summary>Null where a process may not have writable and executable memory, or not at this address.</summary>
    public static NativeCpu? TryCreate()
    {
        const int readWrite = 3, all = 7, fixedNoReplace = 0x100000, privateAnonymous = 0x22;
        if (RuntimeInformation.ProcessArchitecture != Architecture.X64 || !OperatingSystem.IsLinux())
        {
            return null;
        }
        nint code = Map(0, 2 * PageSize, all, privateAnonymous, -1, 0);
        nint window = Map((nint)Window, WindowSize, readWrite, privateAnonymous | fixedNoReplace, -1, 0);
        return code == -1 || window != (nint)Window ? null : new NativeCpu((byte*)code);
    }

    public static Span<byte> Memory => new((void*)Window, WindowSize);

    public void Run(ReadOnlySpan<byte> instruction, ref GuestRegisters registers, Span<ulong> vectors)
    {
        List<byte> code = [0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57];
        RipRelative(code, [0x48, 0x89, 0x25], SavedRsp);
        for (int r = 0; r < 16; r++)
        {
            RipRelative(code, [(byte)(0x40 | r >> 3 << 2), 0x0f, 0x10, (byte)(5 | (r & 7) << 3)], Vectors + r * 16);
        }
        RipRelative(code, [0xff, 0x35], In + 16 * 8);
        code.Add(0x9d);
        for (int r = 0; r < 16; r++)
        {
            RipRelative(code, [(byte)(0x48 | r >> 3 << 2), 0x8b, (byte)(5 | (r & 7) << 3)], In + r * 8);
        }
        code.AddRange(instruction);
        for (int r = 0; r < 16; r++)
        {
            RipRelative(code, [(byte)(0x48 | r >> 3 << 2), 0x89, (byte)(5 | (r & 7) << 3)], Out + r * 8);
        }
        RipRelative(code, [0x48, 0x8b, 0x25], SavedRsp);
        code.Add(0x9c);
        RipRelative(code, [0x8f, 0x05], Out + 16 * 8);
        for (int r = 0; r < 16; r++)
        {
            RipRelative(code, [(byte)(0x40 | r >> 3 << 2), 0x0f, 0x11, (byte)(5 | (r & 7) << 3)], Vectors + r * 16);
        }
        code.AddRange([0xfc, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);

        CollectionsMarshal.AsSpan(code).CopyTo(new Span<byte>(_code, PageSize));
        ulong* values = (ulong*)(_code + In);
        for (int r = 0; r < 16; r++)
        {
            values[r] = registers[(Gpr)r];
        }
        values[16] = registers.Rflags;
        Span<ulong> image = new(_code + Vectors, 2 * 16);
        vectors.CopyTo(image);
        ((delegate* unmanaged<void>)_code)();
        values = (ulong*)(_code + Out);
        for (int r = 0; r < 16; r++)
        {
            registers[(Gpr)r] = values[r];
        }
        registers.Rflags = values[16];
        image.CopyTo(vectors);
    }

    /// <summary>An instruction with a RIP-relative operand at <paramref name="target"/>.</summary>
    private static void RipRelative(List<byte> code, byte[] opcode, int target)
    {
        code.AddRange(opcode);
        code.AddRange(BitConverter.GetBytes(target - (code.Count + 4)));
    }

    public void Dispose()
    {
        Unmap((nint)_code, 2 * PageSize);
        Unmap((nint)Window, WindowSize);
    }

    [LibraryImport("libc", EntryPoint = "mmap")]
    private static partial nint Map(nint address, nint length, int protection, int flags, int file, nint offset);

    [LibraryImport("libc", EntryPoint = "munmap")]
    private static partial int Unmap(nint address, nint length);
}
