// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Abi;
using SharpKvm.Cpu;
using SharpKvm.Emulator;
using SharpKvm.Host;
using SharpKvm.Mmu;

namespace SharpKvm.Vm;

/// <summary>
/// A vCPU as the emulator sees it: registers, guest memory through its page tables, devices in user space.
/// </summary>
internal readonly ref struct GuestMachine<TVendor> : IMachine where TVendor : struct, IVendor
{
    private const int MmioUnit = sizeof(ulong);

    private readonly ref Vcpu _vcpu;

    public GuestMachine(ref Vcpu vcpu) => _vcpu = ref vcpu;

    /// <summary>What a page walk needs to know of the vCPU now.</summary>
    public static PagingState Paging(ref Vcpu vcpu) => new()
    {
        Cr0 = TVendor.GetCr0(ref vcpu),
        Cr3 = TVendor.GetCr3(ref vcpu),
        Cr4 = TVendor.GetCr4(ref vcpu),
        Efer = TVendor.GetEfer(ref vcpu),
        Pkru = vcpu.Shared.Pkru,
        Cpl = (byte)TVendor.GetCpl(ref vcpu),
        PhysicalBits = (byte)vcpu.Cpuid.MaxPhysAddr,
        AlignmentCheck = (vcpu.Registers.Rflags & Rflags.Ac) != 0,
    };

    public ref GuestRegisters Registers => ref _vcpu.Registers;
    public int Cpl => TVendor.GetCpl(ref _vcpu);
    public ulong Cr0 => TVendor.GetCr0(ref _vcpu);
    public ulong Cr4 => TVendor.GetCr4(ref _vcpu);
    public ulong Efer => TVendor.GetEfer(ref _vcpu);

    public DescriptorTable Gdtr
    {
        get => TVendor.GetGdtr(ref _vcpu);
        set => TVendor.SetGdtr(ref _vcpu, value);
    }

    public DescriptorTable Idtr
    {
        get => TVendor.GetIdtr(ref _vcpu);
        set => TVendor.SetIdtr(ref _vcpu, value);
    }

    public Segment GetSegment(SegmentName name) => TVendor.GetSegment(ref _vcpu, name);
    public void SetSegment(SegmentName name, in Segment segment) => TVendor.SetSegment(ref _vcpu, name, in segment);

    public bool MustYield => _vcpu.Shared.RequestBits != 0 || !_vcpu.Pending.Writes.IsEmpty;

    public ref FetchedInstruction Fetched => ref _vcpu.Pending.Instruction;

    public bool Resumes => _vcpu.Pending.Log.Count != 0;

    public void Retire() => _vcpu.Pending.Log.Clear();

    public bool IsChecked(Gva address, int size, bool write) =>
        _vcpu.Pending.Hint.IsOperand = _vcpu.Pending.Hint.Matches(address, size, write);

    public Access Fetch(Gva address, Span<byte> bytes, ref Fault fault)
    {
        if (!TryTranslate(address, PageAccess.Fetch, Rights.None, out Gpa physical, ref fault))
            return Access.Fault;
        MemoryAccess memory = bytes.Length > sizeof(ulong)
            ? GuestMemory.ReadWords(ref _vcpu.Vm, physical, bytes)
            : GuestMemory.Read(ref _vcpu.Vm, physical, bytes);
        return memory switch
        {
            MemoryAccess.Done => Access.Done,
            MemoryAccess.Fault => Access.Absent,
            _ => Access.Unsupported,
        };
    }

    public Access Read(Gva address, Span<byte> data, Rights rights, ref Fault fault)
    {
        PageAccess kind = (rights & Rights.Write) != 0 ? PageAccess.Write : PageAccess.Read;
        ref FaultHint hint = ref _vcpu.Pending.Hint;
        if (hint.Covers(kind))
            return MmioRead(hint.Address, data);
        while (data.Length > 0)
        {
            int count = Math.Min(data.Length, Page.Size - (int)address.Offset);
            if (!TryTranslate(address, kind, rights, out Gpa physical, ref fault))
                return Access.Fault;
            MemoryAccess memory = GuestMemory.Read(ref _vcpu.Vm, physical, data[..count]);
            Access access = memory switch
            {
                MemoryAccess.Done => Access.Done,
                MemoryAccess.NoMemory => MmioRead(physical, data[..count]),
                _ => Access.Absent,
            };
            if (access != Access.Done)
                return access;
            data = data[count..];
            address += (ulong)count;
        }
        return Access.Done;
    }

    public Access Write(Gva address, ReadOnlySpan<byte> data, Rights rights, ref Fault fault)
    {
        ref FaultHint hint = ref _vcpu.Pending.Hint;
        if (hint.Covers(PageAccess.Write))
            return MmioWrite(hint.Address, data, isOnly: data.Length <= MmioUnit);
        int first = Math.Min(data.Length, Page.Size - (int)address.Offset);
        if (!TryTranslate(address, PageAccess.Write, rights, out Gpa low, ref fault))
            return Access.Fault;
        Gpa high = default;
        if (first < data.Length && !TryTranslate(address + (ulong)first, PageAccess.Write, rights, out high, ref fault))
            return Access.Fault;
        Access access = WritePart(low, data[..first]);
        return access == Access.Done && first < data.Length ? WritePart(high, data[first..]) : access;
    }

    public Access Probe(Gva address, int length, Rights rights, out bool memory, ref Fault fault)
    {
        memory = false;
        PageAccess kind = (rights & Rights.Write) != 0 ? PageAccess.Write : PageAccess.Read;
        if (!TryTranslate(address, kind, rights, out Gpa physical, ref fault))
            return Access.Fault;
        memory = (int)address.Offset + length <= Page.Size
            && GuestMemory.IsMemory(ref _vcpu.Vm, physical, write: kind == PageAccess.Write);
        return Access.Done;
    }

    public Access CompareExchange(Gva address, ReadOnlySpan<byte> expected, ReadOnlySpan<byte> replacement,
        out bool exchanged, ref Fault fault)
    {
        exchanged = true;
        int size = replacement.Length;
        if (size > MmioUnit || (address.Value & (ulong)(size - 1)) != 0)
            return Write(address, replacement, Rights.None, ref fault);
        if (!TryTranslate(address, PageAccess.Write, Rights.None, out Gpa physical, ref fault))
            return Access.Fault;
        ulong old = 0, next = 0;
        expected.CopyTo(MemoryMarshal.AsBytes(new Span<ulong>(ref old)));
        replacement.CopyTo(MemoryMarshal.AsBytes(new Span<ulong>(ref next)));
        switch (GuestMemory.CompareExchange(ref _vcpu.Vm, physical, size, old, next, out exchanged))
        {
            case MemoryAccess.Done:
                return Access.Done;
            case MemoryAccess.Fault:
                return Access.Absent;
            default:
                exchanged = true;
                return MmioWrite(physical, replacement);
        }
    }

    public Span<byte> PortData => _vcpu.Shared.Port.Value;

    public Access PortRead(ushort port, int size, int count, ref Fault fault) =>
        PortAccess(ReplayKind.PortRead, port, size, count);

    public Access PortWrite(ushort port, int size, int count, ref Fault fault) =>
        PortAccess(ReplayKind.PortWrite, port, size, count);

    public Access ReadControl(int index, out ulong value, ref Fault fault)
    {
        switch (index)
        {
            case 0: value = TVendor.GetCr0(ref _vcpu); return Access.Done;
            case 2: value = TVendor.GetCr2(ref _vcpu); return Access.Done;
            case 3: value = TVendor.GetCr3(ref _vcpu); return Access.Done;
            case 4: value = TVendor.GetCr4(ref _vcpu); return Access.Done;
            case 8: value = _vcpu.Events.Cr8; return Access.Done;
            default: value = 0; return Raise(ref fault, Fault.InvalidOpcode);
        }
    }

    public Access WriteControl(int index, ulong value, ref Fault fault)
    {
        bool done;
        switch (index)
        {
            case 0: done = ControlRegisters<TVendor>.TrySetCr0(ref _vcpu, value); break;
            case 2: TVendor.SetCr2(ref _vcpu, value); done = true; break;
            case 3: done = ControlRegisters<TVendor>.TrySetCr3(ref _vcpu, value); break;
            case 4: done = ControlRegisters<TVendor>.TrySetCr4(ref _vcpu, value); break;
            case 8: done = ControlRegisters<TVendor>.TrySetCr8(ref _vcpu, value); break;
            default: return Raise(ref fault, Fault.InvalidOpcode);
        }
        return done ? Access.Done : RaiseProtection(ref fault);
    }

    public Access ReadDebug(int index, out ulong value, ref Fault fault) =>
        DebugOutcome(Debugging<TVendor>.TryGet(ref _vcpu, index, out value), ref fault);

    public Access WriteDebug(int index, ulong value, ref Fault fault) =>
        DebugOutcome(Debugging<TVendor>.TrySet(ref _vcpu, index, value), ref fault);

    public Access ReadMsr(uint index, out ulong value, ref Fault fault) =>
        Msrs<TVendor>.TryRead(ref _vcpu, index, out value) && _vcpu.Vm.MsrFilter.Allows(index, write: false)
            ? Access.Done : RaiseProtection(ref fault);

    public Access WriteMsr(uint index, ulong value, ref Fault fault) =>
        _vcpu.Vm.MsrFilter.Allows(index, write: true) && Msrs<TVendor>.TryWrite(ref _vcpu, index, value)
            ? Access.Done : RaiseProtection(ref fault);

    public Access Cpuid(ref Fault fault)
    {
        CpuidTable.Execute(ref _vcpu);
        return Access.Done;
    }

    public Access ReadTsc(out ulong value, ref Fault fault)
    {
        value = HostCpu.Tsc() + TVendor.GetTscOffset(ref _vcpu);
        return Access.Done;
    }

    /// <summary>With nested paging INVLPG is not intercepted; one that is emulated flushes more than asked.</summary>
    public Access InvalidatePage(Gva address, ref Fault fault)
    {
        _vcpu.Shared.Request(VcpuRequests.FlushTlb);
        return Access.Done;
    }

    private bool TryTranslate(Gva address, PageAccess kind, Rights rights, out Gpa physical, ref Fault fault)
    {
        if ((rights & Rights.System) != 0)
            kind |= PageAccess.Implicit;
        PagingState paging = Paging(ref _vcpu);
        Translation translation = GuestWalker.Translate(ref _vcpu.Vm, in paging, address, kind);
        physical = translation.Address;
        if (translation.Succeeded)
            return true;
        fault = new Fault
        {
            Vector = Fault.PageFault, HasErrorCode = true, ErrorCode = (uint)translation.Fault, Address = address.Value,
        };
        return false;
    }

    private Access WritePart(Gpa physical, ReadOnlySpan<byte> data) =>
        GuestMemory.Write(ref _vcpu.Vm, physical, data) switch
        {
            MemoryAccess.Done => Access.Done,
            MemoryAccess.Fault => Access.Absent,
            _ => MmioWrite(physical, data),
        };

    private Access MmioRead(Gpa physical, Span<byte> data)
    {
        for (int offset = 0; offset < data.Length; offset += MmioUnit)
        {
            int count = Math.Min(MmioUnit, data.Length - offset);
            ulong address = physical.Value + (ulong)offset;
            if (KernelDevices<TVendor>.TryRead(ref _vcpu, physical + (ulong)offset, data.Slice(offset, count)))
                continue;
            if (!_vcpu.Pending.Log.TryReplay(ReplayKind.MmioRead, address, (uint)count, out ulong value))
                return AskMmio(address, (uint)count);
            MemoryMarshal.AsBytes(new Span<ulong>(ref value))[..count].CopyTo(data[offset..]);
        }
        return Access.Done;
    }

    /// <param name="isOnly">The instruction does no other access: a device in the kernel gets this one at once.</param>
    private Access MmioWrite(Gpa physical, ReadOnlySpan<byte> data, bool isOnly = false)
    {
        for (int offset = 0; offset < data.Length; offset += MmioUnit)
        {
            int count = Math.Min(MmioUnit, data.Length - offset);
            ulong address = physical.Value + (ulong)offset;
            ulong value = 0;
            data.Slice(offset, count).CopyTo(MemoryMarshal.AsBytes(new Span<ulong>(ref value)));
            if (isOnly && KernelDevices<TVendor>.TryWrite(ref _vcpu, new Gpa(address), (uint)count, value))
                return Access.Done;
            if (!_vcpu.Pending.Writes.TryAdd(address, (uint)count, value, refused: isOnly))
                return Access.Unsupported;
        }
        return Access.Done;
    }

    private Access PortAccess(ReplayKind kind, ushort port, int size, int count)
    {
        uint length = (uint)(size * count);
        if (_vcpu.Pending.Log.TryReplay(kind, port, length, out _))
            return Access.Done;
        bool write = kind == ReplayKind.PortWrite;
        int served = KernelDevices<TVendor>.Ports(ref _vcpu.Vm, write, port, size, count, PortData);
        if (served == count)
            return Access.Done;
        if (!_vcpu.Pending.Log.TryAppend(kind, port, length))
            return Access.Unsupported;
        UserExit.Port(ref _vcpu, !write, port, (byte)size, (uint)(count - served), (uint)(served * size));
        return Access.UserSpace;
    }

    /// <summary>No supported instruction reads device memory after it has written to it.</summary>
    private Access AskMmio(ulong address, uint length)
    {
        if (!_vcpu.Pending.Writes.IsEmpty || !_vcpu.Pending.Log.TryAppend(ReplayKind.MmioRead, address, length))
            return Access.Unsupported;
        UserExit.Mmio(ref _vcpu, write: false, address, length, 0);
        return Access.UserSpace;
    }

    private static Access DebugOutcome(DebugAccess outcome, ref Fault fault) => outcome switch
    {
        DebugAccess.Done => Access.Done,
        DebugAccess.Undefined => Raise(ref fault, Fault.InvalidOpcode),
        DebugAccess.Protection => RaiseProtection(ref fault),
        _ => Raise(ref fault, Vector.Debug.Value),
    };

    private static Access Raise(ref Fault fault, byte vector)
    {
        fault = new Fault { Vector = vector };
        return Access.Fault;
    }

    private static Access RaiseProtection(ref Fault fault)
    {
        fault = new Fault { Vector = Fault.GeneralProtection, HasErrorCode = true };
        return Access.Fault;
    }
}
