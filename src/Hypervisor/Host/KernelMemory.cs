// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Pages for nested tables and hardware structures, addressed by their physical address.</summary>
internal static partial class KernelPages
{
    public const int EntriesPerTable = Page.Size / sizeof(ulong);

    // SAFETY: the kernel's direct map has every page; who gave the address keeps the page as long as the span.
    /// <summary>The page as bytes, through the kernel's direct map.</summary>
    public static unsafe Span<byte> Bytes(Hpa page) => new((void*)Address(page), Page.Size);

    /// <summary>The page as a table of 512 entries.</summary>
    public static unsafe Span<ulong> Entries(Hpa page) => new((void*)Address(page), EntriesPerTable);

    /// <summary>The page as a hardware structure of at most its size.</summary>
    public static KernelRef<T> Reference<T>(Hpa page) where T : unmanaged =>
        new(Unsafe.SizeOf<T>() <= Page.Size ? Address(page) : 0);
}

/// <summary>An array in kernel memory with an explicit owner: who allocates it frees it.</summary>
internal readonly partial struct KernelArray<T> where T : unmanaged
{
    private readonly nint _address;
    public readonly int Length;

    private KernelArray(nint address, int length)
    {
        _address = address;
        Length = length;
    }

    public bool IsNull => _address == 0;
    public nint Address => _address;

    /// <summary>Memory that another owns; of length 0 at a null address.</summary>
    public static KernelArray<T> At(nint address, int length) => new(address, address == 0 ? 0 : length);

    /// <summary>Zeroed memory for <paramref name="length"/> elements, charged to the calling process.</summary>
    public static bool TryAllocate(int length, out KernelArray<T> array)
    {
        nint address = KernelHeap.Allocate((nuint)(uint)length * (nuint)Unsafe.SizeOf<T>());
        array = new KernelArray<T>(address, address == 0 ? 0 : length);
        return address != 0;
    }

    /// <summary>A copy of an array of user space, for the caller to free: 0, ENOMEM or EFAULT.</summary>
    public static int Copy(Hva source, uint length, out KernelArray<T> array)
    {
        array = default;
        if (length == 0)
            return Errno.Ok;
        if (!TryAllocate((int)length, out array))
            return Errno.ENOMEM;
        if (UserMemory.Read(source, MemoryMarshal.AsBytes(array.Span)))
            return Errno.Ok;
        array.Free();
        array = default;
        return Errno.EFAULT;
    }

    /// <summary>The same memory, but only its first elements. To be freed instead of this.</summary>
    public KernelArray<T> First(int length) => new(_address, Math.Min(length, Length));

    /// <summary>A reference that lives as long as the memory.</summary>
    public KernelRef<T> RefAt(int index) => new((uint)index < (uint)Length ? _address + index * Unsafe.SizeOf<T>() : 0);

    public void Free()
    {
        if (_address != 0)
            KernelHeap.Free(_address);
    }

    /// <summary>All elements. Valid until <see cref="Free"/>.</summary>
    // SAFETY: the address and length come from TryAllocate and never change.
    public unsafe Span<T> Span => new((void*)_address, Length);
}
