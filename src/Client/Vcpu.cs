// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Client;

/// <summary>A virtual CPU. KVM binds it to whichever thread calls <see cref="TryRun"/>.</summary>
public sealed unsafe class Vcpu : KvmObject
{
    readonly int _mapSize;
    readonly KvmRun* _run;

    internal Vcpu(Vm vm, uint id, int fd) : base(fd)
    {
        Id = id;
        _mapSize = vm.Kvm.VcpuMmapSize;
        nint map = Libc.MemoryMap(0, (nuint)_mapSize, Libc.ProtRead | Libc.ProtWrite, Libc.MapShared, fd, 0);
        if (map == Libc.MapFailed)
            throw new KvmException("mmap of a vCPU's run page", Libc.LastError);
        _run = (KvmRun*)map;
    }

    /// <summary>The number it was created with.</summary>
    public uint Id { get; }

    /// <summary>The page shared with the kernel.</summary>
    public ref KvmRun Run => ref *_run;

    /// <summary>The bytes of a port access (<see cref="KvmExit.Io"/>), inside the shared mapping.</summary>
    public Span<byte> IoData
    {
        get
        {
            KvmRunIo io = _run->Io;
            ulong length = (ulong)io.Size * io.Count;
            if (io.DataOffset > (ulong)_mapSize || length > (ulong)_mapSize - io.DataOffset)
                throw new InvalidOperationException($"port data lies outside of the run mapping: {io.DataOffset}");
            return new Span<byte>((byte*)_run + io.DataOffset, (int)length);
        }
    }

    /// <summary>Writes that the kernel has collected for user space (<see cref="Vm.TryRegisterCoalesced"/>). Any vCPU's
    /// mapping shows the same ring.</summary>
    public ref KvmCoalescedMmioRing CoalescedRing
    {
        get
        {
            int offset = KvmCoalescedMmioRing.PageOffset * Environment.SystemPageSize;
            if (_mapSize < offset + sizeof(KvmCoalescedMmioRing))
                throw new InvalidOperationException("the run mapping has no page for coalesced writes");
            return ref *(KvmCoalescedMmioRing*)((byte*)_run + offset);
        }
    }

    /// <summary>KVM_RUN as it is: 0 with the reason in <see cref="Run"/>, or the negated error number (EINTR when a
    /// signal arrived or immediate_exit was set).</summary>
    public int TryRun() => TryCall(KvmIoctl.Run);

    /// <summary>KVM_RUN that has to succeed; returns the exit reason.</summary>
    public KvmExit RunOnce()
    {
        Call(KvmIoctl.Run);
        return _run->ExitReason;
    }

    public KvmRegs Regs
    {
        get => Get<KvmRegs>(KvmIoctl.GetRegs);
        set => Call(KvmIoctl.SetRegs, ref value);
    }

    public KvmSregs Sregs
    {
        get => Get<KvmSregs>(KvmIoctl.GetSregs);
        set => Call(KvmIoctl.SetSregs, ref value);
    }

    public KvmSregs2 Sregs2
    {
        get => Get<KvmSregs2>(KvmIoctl.GetSregs2);
        set => Call(KvmIoctl.SetSregs2, ref value);
    }

    public KvmFpu Fpu
    {
        get => Get<KvmFpu>(KvmIoctl.GetFpu);
        set => Call(KvmIoctl.SetFpu, ref value);
    }

    public KvmXsave Xsave
    {
        get => Get<KvmXsave>(KvmIoctl.GetXsave);
        set => Call(KvmIoctl.SetXsave, ref value);
    }

    public KvmXcrs Xcrs
    {
        get => Get<KvmXcrs>(KvmIoctl.GetXcrs);
        set => Call(KvmIoctl.SetXcrs, ref value);
    }

    public KvmDebugregs Debugregs
    {
        get => Get<KvmDebugregs>(KvmIoctl.GetDebugregs);
        set => Call(KvmIoctl.SetDebugregs, ref value);
    }

    public KvmVcpuEvents Events
    {
        get => Get<KvmVcpuEvents>(KvmIoctl.GetVcpuEvents);
        set => Call(KvmIoctl.SetVcpuEvents, ref value);
    }

    public uint MpState
    {
        get => Get<KvmMpState>(KvmIoctl.GetMpState).MpState;
        set
        {
            var state = new KvmMpState { MpState = value };
            Call(KvmIoctl.SetMpState, ref state);
        }
    }

    /// <summary>The local APIC's registers (KVM_GET_LAPIC, KVM_SET_LAPIC).</summary>
    public KvmLapicState Lapic
    {
        get => Get<KvmLapicState>(KvmIoctl.GetLapic);
        set => Call(KvmIoctl.SetLapic, ref value);
    }

    /// <summary>The CPUID leaves that the guest sees (KVM_GET_CPUID2, KVM_SET_CPUID2).</summary>
    public KvmCpuidEntry2[] Cpuid
    {
        get => CpuidList.Read(this, KvmIoctl.GetCpuid2);
        set => Call(KvmIoctl.SetCpuid2, CpuidList.Pack(value));
    }

    /// <summary>Frequency of the guest's time stamp counter in kHz.</summary>
    public int TscKhz
    {
        get => Call(KvmIoctl.GetTscKhz);
        set => Call(KvmIoctl.SetTscKhz, (nuint)value);
    }

    /// <summary>KVM_KVMCLOCK_CTRL: tells the guest's clock that the guest was paused.</summary>
    public int TryKvmclockCtrl() => TryCall(KvmIoctl.KvmclockCtrl);

    /// <summary>Reads one MSR; <see cref="KvmException"/> (EINVAL) when the vCPU does not have it.</summary>
    public ulong GetMsr(uint index)
    {
        KvmMsrEntry[] entries = [new(index, 0, 0)];
        ExpectOne(MsrList.TryGet(this, entries), $"read of MSR 0x{index:x}");
        return entries[0].Data;
    }

    /// <summary>Writes one MSR; <see cref="KvmException"/> (EINVAL) when the vCPU refuses it.</summary>
    public void SetMsr(uint index, ulong value) =>
        ExpectOne(TrySetMsrs([new(index, 0, value)]), $"write of 0x{value:x} to MSR 0x{index:x}");

    /// <summary>KVM_SET_MSRS: the number of entries taken, or the negated error number.</summary>
    public int TrySetMsrs(ReadOnlySpan<KvmMsrEntry> entries) => TryCall(KvmIoctl.SetMsrs, MsrList.Pack(entries));

    /// <summary>KVM_INTERRUPT: queues an external interrupt. Returns 0 or the negated error number.</summary>
    public int TryInterrupt(uint vector) => TryCall(KvmIoctl.Interrupt, ref vector);

    /// <summary>KVM_NMI.</summary>
    public void Nmi() => Call(KvmIoctl.Nmi);

    /// <summary>KVM_SET_GUEST_DEBUG.</summary>
    public void SetGuestDebug(KvmGuestDebug debug) => Call(KvmIoctl.SetGuestDebug, ref debug);

    /// <summary>KVM_TRANSLATE: guest-linear to guest-physical by the current paging state.</summary>
    public KvmTranslation Translate(ulong linearAddress)
    {
        var translation = new KvmTranslation { LinearAddress = linearAddress };
        Call(KvmIoctl.Translate, ref translation);
        return translation;
    }

    protected override void Release() => _ = Libc.MemoryUnmap((nint)_run, (nuint)_mapSize);

    static void ExpectOne(int result, string operation)
    {
        if (result != 1)
            throw new KvmException(operation, result < 0 ? (Errno)(-result) : Errno.EINVAL);
    }
}
