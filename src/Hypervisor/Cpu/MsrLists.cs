// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>The system ioctls about MSRs: which there are, and those that describe features.</summary>
internal static class MsrLists
{
    public const int MaxPerCall = 255;
    private const ulong LfenceSerializes = 1 << 1;

    private static ReadOnlySpan<uint> Saved =>
    [
        Msr.SysenterCs, Msr.SysenterEsp, Msr.SysenterEip, Msr.Star, Msr.Cstar, Msr.KernelGsBase, Msr.Sfmask, Msr.Lstar,
        Msr.Tsc, Msr.Pat, Msr.TscAdjust, Msr.MiscEnable, Msr.McgStatus, Msr.McgCtl, Msr.MicrocodeRevision, Msr.Hwcr,
        Msr.DeCfg, KvmMsr.WallClockOld, KvmMsr.SystemTimeOld, KvmMsr.WallClock, KvmMsr.SystemTime, KvmMsr.StealTime,
        KvmMsr.Eoi, KvmMsr.PollControl, KvmMsr.AsyncFault, KvmMsr.AsyncFaultVector, KvmMsr.AsyncFaultAck, Msr.TscAux,
    ];

    /// <summary>KVM_GET_MSR_INDEX_LIST: what a VMM saves and restores.</summary>
    public static ReadOnlySpan<uint> ToSave =>
        FeatureWords.IsSupported(Feature.Rdtscp) || FeatureWords.IsSupported(Feature.Rdpid) ? Saved : Saved[..^1];

    /// <summary>KVM_GET_MSR_FEATURE_INDEX_LIST.</summary>
    public static ReadOnlySpan<uint> Features => [Msr.MicrocodeRevision, Msr.DeCfg];

    /// <summary>KVM_GET_MSRS on the system: values of feature MSRs. Returns how many were read.</summary>
    public static int GetFeatures(Hva elements, uint count)
    {
        int error = ReadEntries(elements, count, out KernelArray<kvm_msr_entry> entries);
        int done = 0;
        while (done < entries.Length && TryGetFeature(entries.Span[done].index, out entries.Span[done].data))
            done++;
        return error != 0 ? error : WriteEntries(elements, entries, done, write: true);
    }

    /// <summary>The elements of a kvm_msrs argument; E2BIG beyond 255. The caller frees them.</summary>
    public static int ReadEntries(Hva elements, uint count, out KernelArray<kvm_msr_entry> entries)
    {
        entries = default;
        return count > MaxPerCall ? Errno.E2BIG : UserMemory.Copy(elements, count, out entries);
    }

    /// <summary>Frees the elements, given back to user space first if asked. Returns <paramref name="done"/>.</summary>
    public static int WriteEntries(Hva elements, KernelArray<kvm_msr_entry> entries, int done, bool write)
    {
        bool written = !write || UserMemory.Write(elements, MemoryMarshal.AsBytes(entries.Span));
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
