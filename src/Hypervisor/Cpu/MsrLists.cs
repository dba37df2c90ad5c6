// SPDX-License-Identifier: GPL-2.0-only

namespace SharpKvm.Cpu;

/// <summary>The system ioctls about MSRs: which there are, and those that describe features.</summary>
internal static class MsrLists
{
    public const int MaxPerCall = 255;
    private const ulong LfenceSerializes = 1 << 1;

    private static ReadOnlySpan<uint> ToSave =>
    [
        Msr.SysenterCs, Msr.SysenterEsp, Msr.SysenterEip, Msr.Star, Msr.Cstar, Msr.KernelGsBase, Msr.Sfmask, Msr.Lstar,
        Msr.Tsc, Msr.Pat, Msr.TscAdjust, Msr.MiscEnable, Msr.McgStatus, Msr.McgCtl, Msr.MicrocodeRevision, Msr.Hwcr,
        Msr.DeCfg, Msr.KvmWallClockOld, Msr.KvmSystemTimeOld, Msr.KvmWallClock, Msr.KvmSystemTime, Msr.KvmStealTime,
        Msr.KvmEoi, Msr.KvmPollControl, Msr.KvmAsyncFault, Msr.KvmAsyncFaultVector, Msr.KvmAsyncFaultAck, Msr.TscAux,
    ];

    private static ReadOnlySpan<uint> Features => [Msr.MicrocodeRevision, Msr.DeCfg];

    /// <summary>KVM_GET_MSR_INDEX_LIST: what a VMM saves and restores.</summary>
    public static int IndexList(Hva argument)
    {
        bool hasTscAux = FeatureWords.IsSupported(Feature.Rdtscp) || FeatureWords.IsSupported(Feature.Rdpid);
        return Write(argument, hasTscAux ? ToSave : ToSave.Slice(0, ToSave.Length - 1));
    }

    /// <summary>KVM_GET_MSR_FEATURE_INDEX_LIST.</summary>
    public static int FeatureIndexList(Hva argument) => Write(argument, Features);

    /// <summary>The count always goes back; the indices only where they fit, else E2BIG.</summary>
    private static int Write(Hva argument, ReadOnlySpan<uint> indices)
    {
        uint count = (uint)indices.Length;
        if (!UserMemory.TryRead(argument, out uint room) || !UserMemory.TryWrite(argument, count))
            return Errno.EFAULT;
        if (room < count)
            return Errno.E2BIG;
        return UserMemory.Write(argument + sizeof(uint), MemoryMarshal.AsBytes(indices)) ? 0 : Errno.EFAULT;
    }

    /// <summary>KVM_GET_MSRS on the system: values of feature MSRs. Returns how many were read.</summary>
    public static int GetFeatures(Hva argument)
    {
        int error = ReadEntries(argument, out KernelArray<kvm_msr_entry> entries);
        int done = 0;
        while (done < entries.Length && TryGetFeature(entries.Span[done].index, out entries.Span[done].data))
            done++;
        return error != 0 ? error : WriteEntries(argument, entries, done, write: true);
    }

    /// <summary>The elements of a kvm_msrs argument, copied once; E2BIG beyond 255. The caller frees them.</summary>
    public static int ReadEntries(Hva argument, out KernelArray<kvm_msr_entry> entries)
    {
        entries = default;
        if (!UserMemory.TryRead(argument, out kvm_msrs head))
            return Errno.EFAULT;
        if (head.nmsrs > MaxPerCall)
            return Errno.E2BIG;
        if (head.nmsrs == 0)
            return 0;
        if (!KernelArray<kvm_msr_entry>.TryAllocate((int)head.nmsrs, out entries))
            return Errno.ENOMEM;
        if (UserMemory.Read(argument + (ulong)Unsafe.SizeOf<kvm_msrs>(), MemoryMarshal.AsBytes(entries.Span)))
            return 0;
        entries.Free();
        entries = default;
        return Errno.EFAULT;
    }

    /// <summary>Frees the elements, given back to user space first if asked. Returns <paramref name="done"/>.</summary>
    public static int WriteEntries(Hva argument, KernelArray<kvm_msr_entry> entries, int done, bool write)
    {
        Hva body = argument + (ulong)Unsafe.SizeOf<kvm_msrs>();
        bool written = !write || UserMemory.Write(body, MemoryMarshal.AsBytes(entries.Span));
        entries.Free();
        return written ? done : Errno.EFAULT;
    }

    private static bool TryGetFeature(uint index, out ulong value)
    {
        value = 0;
        if (index is not (Msr.MicrocodeRevision or Msr.DeCfg))
            return false;
        // What the host does not have reads as zero.
        HostCpu.TryReadMsr(index, out value);
        value &= index == Msr.DeCfg ? LfenceSerializes : ~0ul;
        return true;
    }
}
