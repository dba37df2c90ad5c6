// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Selftests;

/// <summary>Memory whose pages are not there until the test says so (userfaultfd): what swapped-out guest memory is
/// to a hypervisor.</summary>
sealed unsafe partial class UserFault : IDisposable
{
    const int SystemCall = 323, CloseOnExec = 0x80000, NonBlocking = 0x800;
    const ulong Api = 0xAA, ModeMissing = 1;
    const uint ApiRequest = 0xC018AA3F, RegisterRequest = 0xC020AA00, CopyRequest = 0xC028AA03;

    readonly int _fd;

    /// <summary>Takes over the missing pages of a range; the test is skipped when the kernel has no
    /// userfaultfd.</summary>
    public UserFault(ulong address, ulong length)
    {
        _fd = (int)Open(SystemCall, CloseOnExec | NonBlocking);
        Check.Needs(_fd >= 0, "userfaultfd");
        ulong* api = stackalloc ulong[] { Api, 0, 0 };
        Request(ApiRequest, api, "UFFDIO_API");
        ulong* range = stackalloc ulong[] { address, length, ModeMissing, 0 };
        Request(RegisterRequest, range, "UFFDIO_REGISTER");
    }

    /// <summary>Puts a page there, filled with one value.</summary>
    public void Provide(ulong address, uint value)
    {
        uint* page = (uint*)NativeMemory.AlignedAlloc(4096, 4096);
        new Span<uint>(page, 1024).Fill(value);
        ulong* copy = stackalloc ulong[] { address, (ulong)page, 4096, 0, 0 };
        Request(CopyRequest, copy, "UFFDIO_COPY");
        NativeMemory.AlignedFree(page);
    }

    public void Dispose() => Libc.Close(_fd);

    void Request(uint request, ulong* argument, string name)
    {
        if (Libc.Ioctl(_fd, request, (nuint)argument) != 0)
            throw new KvmException(name, Libc.LastError);
    }

    [LibraryImport("libc", EntryPoint = "syscall", SetLastError = true)]
    private static partial long Open(long number, long flags);
}
