// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Client;

/// <summary><c>struct kvm_cpuid2</c>: a count, padding, and that many entries.</summary>
public static class CpuidList
{
    const int HeaderSize = 8, EntrySize = 40, MaxEntries = 256;

    /// <summary>Reads a list by one of the requests that fill a <c>kvm_cpuid2</c>.</summary>
    /// <remarks>KVM_GET_CPUID2 of older kernels leaves the count as it was: entries that are all zero at the end are
    /// none.</remarks>
    public static KvmCpuidEntry2[] Read(KvmObject source, uint request)
    {
        byte[] buffer = Pack(new KvmCpuidEntry2[MaxEntries]);
        source.Call(request, buffer);
        int count = MemoryMarshal.Read<int>(buffer);
        Span<byte> entries = buffer.AsSpan(HeaderSize, count * EntrySize);
        int used = entries.LastIndexOfAnyExcept((byte)0) + 1;
        return MemoryMarshal.Cast<byte, KvmCpuidEntry2>(entries)[..((used + EntrySize - 1) / EntrySize)].ToArray();
    }

    /// <summary>The bytes of a <c>kvm_cpuid2</c> with these entries.</summary>
    public static byte[] Pack(ReadOnlySpan<KvmCpuidEntry2> entries) =>
        FlexibleArray.Pack(HeaderSize, MemoryMarshal.AsBytes(entries), entries.Length);
}

/// <summary><c>struct kvm_msrs</c>: a count, padding, and that many entries.</summary>
public static class MsrList
{
    const int HeaderSize = 8;

    /// <summary>KVM_GET_MSRS on a system or vCPU descriptor; fills the entries that the kernel processed and returns
    /// their number, which is smaller than the length when it met an MSR it refused; negated error otherwise.</summary>
    public static int TryGet(KvmObject source, Span<KvmMsrEntry> entries)
    {
        byte[] buffer = Pack(entries);
        int result = source.TryCall(KvmIoctl.GetMsrs, buffer);
        if (result >= 0)
            MemoryMarshal.Cast<byte, KvmMsrEntry>(buffer.AsSpan(HeaderSize)).CopyTo(entries);
        return result;
    }

    /// <summary>The bytes of a <c>kvm_msrs</c> with these entries.</summary>
    public static byte[] Pack(ReadOnlySpan<KvmMsrEntry> entries) =>
        FlexibleArray.Pack(HeaderSize, MemoryMarshal.AsBytes(entries), entries.Length);
}

static class FlexibleArray
{
    public static byte[] Pack(int headerSize, ReadOnlySpan<byte> entries, int count)
    {
        byte[] buffer = new byte[headerSize + entries.Length];
        MemoryMarshal.Write(buffer, in count);
        entries.CopyTo(buffer.AsSpan(headerSize));
        return buffer;
    }
}
