// SPDX-License-Identifier: GPL-2.0-only
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
        Efer = vcpu.Efer,
        Pkru = vcpu.Shared.Pkru,
        Cpl = (byte)TVendor.GetCpl(ref vcpu),
        PhysicalBits = (byte)vcpu.Cpuid.MaxPhysAddr,
        AlignmentCheck = (vcpu.Registers.Rflags & Rflags.Ac) != 0,
    };

    public ref GuestRegisters Registers => ref _vcpu.Registers;
    public int Cpl { get => TVendor.GetCpl(ref _vcpu); set => TVendor.SetCpl(ref _vcpu, value); }

    public ulong Cr0 => TVendor.GetCr0(ref _vcpu);
    public ulong Cr4 => TVendor.GetCr4(ref _vcpu);
    public ulong Efer => _vcpu.Efer;

    public DescriptorTable Gdtr { get => GetTable(SegmentName.Gdtr); set => SetTable(SegmentName.Gdtr, value); }
    public DescriptorTable Idtr { get => GetTable(SegmentName.Idtr); set => SetTable(SegmentName.Idtr, value); }
    private DescriptorTable GetTable(SegmentName name) => TVendor.GetTable(ref _vcpu, name);
    private void SetTable(SegmentName name, DescriptorTable table) => TVendor.SetTable(ref _vcpu, name, table);

    public Segment GetSegment(SegmentName name) => TVendor.GetSegment(ref _vcpu, name);
    public void SetSegment(SegmentName name, in Segment segment) => TVendor.SetSegment(ref _vcpu, name, in segment);

    public bool MustYield => _vcpu.Shared.RequestBits != 0 || !_vcpu.Pending.Writes.IsAtEnd;

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
        return IsMemory(memory, out Access access) ? access : Access.Unsupported;
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
            if (!IsMemory(GuestMemory.Read(ref _vcpu.Vm, physical, data[..count]), out Access access))
                access = MmioRead(physical, data[..count]);
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
        if (IsMemory(GuestMemory.CompareExchange(ref _vcpu.Vm, physical, size, old, next, out exchanged),
            out Access access))
        {
            ShadowTables.Written(ref _vcpu.Vm, physical, size);
            return access;
        }
        exchanged = true;
        return MmioWrite(physical, replacement);
    }

    public Span<byte> PortData => _vcpu.Shared.Port.Value;

    public Access Port(bool write, ushort port, int size, int count)
    {
        AccessKind kind = write ? AccessKind.PortWrite : AccessKind.PortRead;
        uint length = (uint)(size * count);
        if (_vcpu.Pending.Log.TryReplay(kind, port, length, out _))
            return Access.Done;
        int served = KernelDevices<TVendor>.Ports(ref _vcpu.Vm, write, port, size, count, PortData);
        if (served == count)
            return Access.Done;
        if (!_vcpu.Pending.Log.TryAdd(kind, port, length))
            return Access.Unsupported;
        UserExit.Port(ref _vcpu, !write, port, (byte)size, (uint)(count - served), (uint)(served * size));
        return Access.UserSpace;
    }

    public uint FpuWords(bool initialize)
    {
        ref fxregs_state image = ref MemoryMarshal.AsRef<fxregs_state>(_vcpu.Shared.Host.LegacyFpu());
        bool absent = (image.present & fxregs_state.X87) == 0 && HostCpu.SupportedXcr0() != 0;
        if (absent)
            image.st = default;
        if (absent || initialize)
            image.x87 = new() { fcw = StateIoctls<TVendor>.InitialFcw };
        image.present |= fxregs_state.X87;
        return image.x87.fcw | (uint)image.x87.fsw << 16;
    }

    public Span<ulong> Vector(int register)
    {
        ref fxregs_state image = ref MemoryMarshal.AsRef<fxregs_state>(_vcpu.Shared.Host.LegacyFpu());
        // A component that is absent is all zeros.
        if ((image.present & fxregs_state.Sse) == 0 && HostCpu.SupportedXcr0() != 0)
            image.xmm = default;
        image.present |= fxregs_state.Sse;
        return image.xmm[register];
    }

    public ulong ReadControl(int index) => index switch
    {
        0 => TVendor.GetCr0(ref _vcpu),
        2 => TVendor.Cr2(ref _vcpu),
        3 => TVendor.GetCr3(ref _vcpu),
        4 => TVendor.GetCr4(ref _vcpu),
        _ => _vcpu.Events.Cr8,
    };

    public bool TryWriteControl(int index, ulong value)
    {
        switch (index)
        {
            case 0: return ControlRegisters<TVendor>.TrySetCr0(ref _vcpu, value);
            case 2: TVendor.Cr2(ref _vcpu) = value; return true;
            case 3: return ControlRegisters<TVendor>.TrySetCr3(ref _vcpu, value);
            case 4: return ControlRegisters<TVendor>.TrySetCr4(ref _vcpu, value);
            default: return ControlRegisters<TVendor>.TrySetCr8(ref _vcpu, value);
        }
    }

    public DebugAccess TryReadDebug(int index, out ulong value) =>
        Debugging<TVendor>.TryGet(ref _vcpu, index, out value);
    public DebugAccess TryWriteDebug(int index, ulong value) => Debugging<TVendor>.TrySet(ref _vcpu, index, value);

    public bool TryReadMsr(uint index, out ulong value) =>
        Msrs<TVendor>.TryRead(ref _vcpu, index, out value) && _vcpu.Vm.MsrFilter.Allows(index, write: false);
    public bool TryWriteMsr(uint index, ulong value) =>
        _vcpu.Vm.MsrFilter.Allows(index, write: true) && Msrs<TVendor>.TryWrite(ref _vcpu, index, value);

    public void Cpuid() => CpuidTable.Execute(ref _vcpu);

    public bool Hypercall()
    {
        Hypercalls<TVendor>.Execute(ref _vcpu);
        return true;
    }

    public ulong Tsc => HostCpu.Tsc() + _vcpu.TscOffset;

    /// <summary>
    /// With nested paging INVLPG is not intercepted; one that is emulated, or of a guest with shadow tables, flushes
    /// more than asked: small pages may stand for a large one, all of which goes.
    /// </summary>
    public void InvalidatePage(Gva address)
    {
        if (_vcpu.Vm.Memory.Shadow.IsActive)
            ShadowTables.Invalidate(ref _vcpu, Paging(ref _vcpu), address);
        TVendor.FlushTlb(ref _vcpu);
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
        fault = new() { Vector = Fault.PageFault, ErrorCode = (uint)translation.Fault, Address = address.Value };
        return false;
    }

    private Access WritePart(Gpa physical, ReadOnlySpan<byte> data)
    {
        if (!IsMemory(GuestMemory.Write(ref _vcpu.Vm, physical, data), out Access access))
            return MmioWrite(physical, data);
        ShadowTables.Written(ref _vcpu.Vm, physical, data.Length);
        return access;
    }

    /// <summary>How an access ended, unless it is one to a device.</summary>
    [MethodImpl(AggressiveInlining)] private static bool IsMemory(MemoryAccess memory, out Access access)
    {
        access = memory == MemoryAccess.Done ? Access.Done : Access.Absent;
        return memory is MemoryAccess.Done or MemoryAccess.Fault;
    }

    private Access MmioRead(Gpa physical, Span<byte> data)
    {
        for (int offset = 0; offset < data.Length; offset += MmioUnit)
        {
            Span<byte> part = data.Slice(offset, Math.Min(MmioUnit, data.Length - offset));
            Gpa address = physical + (ulong)offset;
            uint length = (uint)part.Length;
            if (KernelDevices<TVendor>.TryRead(ref _vcpu, address, part))
                continue;
            if (!_vcpu.Pending.Log.TryReplay(AccessKind.Read, address.Value, length, out ulong value))
            {
                // No supported instruction reads device memory after it has written to it.
                if (!_vcpu.Pending.Writes.IsAtEnd || !_vcpu.Pending.Log.TryAdd(AccessKind.Read, address.Value, length))
                    return Access.Unsupported;
                UserExit.Mmio(ref _vcpu, write: false, address.Value, length, 0);
                return Access.UserSpace;
            }
            MemoryMarshal.AsBytes(new Span<ulong>(ref value))[..part.Length].CopyTo(part);
        }
        return Access.Done;
    }

    /// <param name="isOnly">The instruction does no other access: a device in the kernel gets this one at once.</param>
    private Access MmioWrite(Gpa physical, ReadOnlySpan<byte> data, bool isOnly = false)
    {
        AccessKind kind = isOnly ? AccessKind.RefusedWrite : AccessKind.Write;
        for (int offset = 0; offset < data.Length; offset += MmioUnit)
        {
            int count = Math.Min(MmioUnit, data.Length - offset);
            Gpa address = physical + (ulong)offset;
            ulong value = 0;
            data.Slice(offset, count).CopyTo(MemoryMarshal.AsBytes(new Span<ulong>(ref value)));
            if (isOnly && KernelDevices<TVendor>.TryWrite(ref _vcpu, address, (uint)count, value))
                return Access.Done;
            if (!_vcpu.Pending.Writes.TryAdd(kind, address.Value, (uint)count, value))
                return Access.Unsupported;
        }
        return Access.Done;
    }
}
