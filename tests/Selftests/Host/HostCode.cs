// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Machine code for the host itself: what C# cannot say (RDTSCP, RDFSBASE, YMM registers across a
/// call).</summary>
static unsafe class HostCode
{
    const int BlockSize = 4096;

    /// <summary>Assembles 64-bit code into executable memory, which lives as long as the process.</summary>
    public static nint Load(Action<Assembler> code)
    {
        nint block = Libc.MemoryMap(0, BlockSize, Libc.ProtRead | Libc.ProtWrite | Libc.ProtExec,
            Libc.MapPrivate | Libc.MapAnonymous, -1, 0);
        if (block == Libc.MapFailed)
            throw new KvmException("mmap of code", Libc.LastError);
        MachineCode.Bytes(64, (ulong)block, code).CopyTo(new Span<byte>((void*)block, BlockSize));
        return block;
    }

    /// <summary>Calls code that takes one pointer (in rdi) and returns in rax.</summary>
    public static ulong Call(nint code, void* argument) => ((delegate* unmanaged<void*, ulong>)code)(argument);
}
