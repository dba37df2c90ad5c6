// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Vm;

namespace SharpKvm.Tests.Cpu;

/// <summary>What a control block would hold, as plain fields.</summary>
internal sealed class FakeControlBlock
{
    public Segment[] Segments { get; } = new Segment[8];
    public Dictionary<SegmentName, DescriptorTable> Tables { get; } = [];
    public int Cpl { get; set; }
    public ulong Cr0 { get; set; }
    public ulong Cr2;
    public ulong Cr3 { get; set; }
    public ulong Cr4 { get; set; }
    public ulong Dr7 { get; set; }
    public ulong TscOffset { get; set; }
    public int InterruptShadow { get; set; }
    public bool NmiMasked { get; set; }
    public Dictionary<uint, ulong> Msrs { get; } = new()
    {
        [Msr.Star] = 0, [Msr.Lstar] = 0, [Msr.Cstar] = 0, [Msr.Sfmask] = 0, [Msr.KernelGsBase] = 0, [Msr.FsBase] = 0,
        [Msr.GsBase] = 0, [Msr.SysenterCs] = 0, [Msr.SysenterEsp] = 0, [Msr.SysenterEip] = 0, [Msr.Pat] = 0,
    };
    public int DebugUpdates { get; set; }
    public int MsrFilterUpdates { get; set; }
    public int TlbFlushes { get; set; }
    public int ApicUpdates { get; set; }

    /// <summary>By <c>vcpu.Shared.ControlBlock</c>.</summary>
    private static readonly System.Collections.Concurrent.ConcurrentDictionary<ulong, FakeControlBlock> s_all = [];
    private static ulong s_last;

    public static ulong Add()
    {
        ulong key = Interlocked.Increment(ref s_last);
        s_all[key] = new FakeControlBlock();
        return key;
    }

    public static FakeControlBlock Of(ref Vcpu vcpu) => s_all[vcpu.Shared.ControlBlock];

    public static void Remove(ref Vcpu vcpu) => s_all.TryRemove(vcpu.Shared.ControlBlock, out _);
}

/// <summary>A vendor without hardware: each vCPU has a <see cref="FakeControlBlock"/>.</summary>
internal struct FakeVendor : IVendor
{
    public static int CreateVcpu(ref Vcpu vcpu)
    {
        vcpu.Shared.ControlBlock = FakeControlBlock.Add();
        return 0;
    }

    public static void DestroyVcpu(ref Vcpu vcpu) => FakeControlBlock.Remove(ref vcpu);

    public static Segment GetSegment(ref Vcpu vcpu, SegmentName name) => Of(ref vcpu).Segments[(int)name];
    public static void SetSegment(ref Vcpu vcpu, SegmentName name, in Segment segment) =>
        Of(ref vcpu).Segments[(int)name] = segment;
    public static DescriptorTable GetTable(ref Vcpu vcpu, SegmentName name) => Of(ref vcpu).Tables[name];
    public static void SetTable(ref Vcpu vcpu, SegmentName name, DescriptorTable table) =>
        Of(ref vcpu).Tables[name] = table;
    public static bool Is64Bit(ref Vcpu vcpu) =>
        Of(ref vcpu).Segments[(int)SegmentName.Cs].Long && (vcpu.Efer & Efer.Lma) != 0;
    public static int GetCpl(ref Vcpu vcpu) => Of(ref vcpu).Cpl;
    public static void SetCpl(ref Vcpu vcpu, int cpl) => Of(ref vcpu).Cpl = cpl;
    public static ulong GetCr0(ref Vcpu vcpu) => Of(ref vcpu).Cr0;
    public static void SetCr0(ref Vcpu vcpu, ulong value) => Of(ref vcpu).Cr0 = value;
    public static ref ulong Cr2(ref Vcpu vcpu) => ref Of(ref vcpu).Cr2;
    public static ulong GetCr3(ref Vcpu vcpu) => Of(ref vcpu).Cr3;
    public static void SetCr3(ref Vcpu vcpu, ulong value) => Of(ref vcpu).Cr3 = value;
    public static ulong GetCr4(ref Vcpu vcpu) => Of(ref vcpu).Cr4;
    public static void SetCr4(ref Vcpu vcpu, ulong value) => Of(ref vcpu).Cr4 = value;
    public static void SetEfer(ref Vcpu vcpu, ulong value) => vcpu.Efer = value;
    public static ulong GetDr7(ref Vcpu vcpu) => Of(ref vcpu).Dr7;
    public static void SetDr7(ref Vcpu vcpu, ulong value) => Of(ref vcpu).Dr7 = value;
    public static void UpdateMsrFilter(ref Vcpu vcpu) => Of(ref vcpu).MsrFilterUpdates++;

    public static void UpdateDebug(ref Vcpu vcpu) => Of(ref vcpu).DebugUpdates++;
    public static bool TryGetMsr(ref Vcpu vcpu, uint index, out ulong value) =>
        Of(ref vcpu).Msrs.TryGetValue(index, out value);

    public static bool TrySetMsr(ref Vcpu vcpu, uint index, ulong value)
    {
        FakeControlBlock block = Of(ref vcpu);
        if (!block.Msrs.ContainsKey(index))
            return false;
        block.Msrs[index] = value;
        return true;
    }

    public static void ApplyCpuid(ref Vcpu vcpu)
    {
    }

    public static void UpdateApic(ref Vcpu vcpu) => Of(ref vcpu).ApicUpdates++;

    public static void UpdateTscOffset(ref Vcpu vcpu) => Of(ref vcpu).TscOffset = vcpu.TscOffset;
    public static int GetInterruptShadow(ref Vcpu vcpu) => Of(ref vcpu).InterruptShadow;
    public static void SetInterruptShadow(ref Vcpu vcpu, int shadow) => Of(ref vcpu).InterruptShadow = shadow;
    public static bool GetNmiMasked(ref Vcpu vcpu) => Of(ref vcpu).NmiMasked;
    public static void SetNmiMasked(ref Vcpu vcpu, bool masked) => Of(ref vcpu).NmiMasked = masked;
    public static void SetTimer(ref Vcpu vcpu, ulong target, ulong now, bool halts)
    {
        if (!halts)
            vcpu.Shared.Host.SetTimer(target);
    }

    public static void FlushTlb(ref Vcpu vcpu) => Of(ref vcpu).TlbFlushes++;
    public static void OpenInterruptWindow(ref Vcpu vcpu) => throw new NotSupportedException();
    public static void OpenNmiWindow(ref Vcpu vcpu) => throw new NotSupportedException();
    public static uint Hypercall => Opcode.Vmmcall;
    public static bool TryFindEnd(ref Vcpu vcpu, uint opcode, out ulong end) => throw new NotSupportedException();
    public static bool CanRun(ref Vcpu vcpu) => true;
    public static VcpuAction Step(ref Vcpu vcpu) => VcpuAction.UserSpace;

    private static FakeControlBlock Of(ref Vcpu vcpu) => FakeControlBlock.Of(ref vcpu);
}
