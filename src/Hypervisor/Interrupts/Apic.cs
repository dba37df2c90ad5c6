// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>
/// The local APIC as software sees it: its page, its MSRs, IA32_APIC_BASE, KVM_GET_LAPIC and KVM_SET_LAPIC (SDM vol. 3,
/// chapter 11). By the vCPU's own thread only.
/// </summary>
internal static class Apic<TVendor> where TVendor : struct, IVendor
{
    /// <summary>Six LVT entries, as of the Pentium 4.</summary>
    private const uint Version = 0x50014;
    /// <summary>In the version register: SVR has <see cref="SuppressEoi"/>.</summary>
    private const uint CanSuppressEoi = 1 << 24;
    private const uint SuppressEoi = 1 << 12;
    private const uint SvrReset = 0xff, FlatModel = 0xf0000000, DfrFixed = 0x0fffffff, ExtInt = 7 << 8;
    /// <summary>From one register of the page to the next, in its 32-bit words.</summary>
    private const int Stride = 4;
    private const uint FirstMsr = 0x800, Masked = 1 << 16, SendIllegalVector = 1 << 5;
    private const uint IcrBusy = 1 << 12, IcrAssert = 1 << 14, IcrLevel = 1 << 15, IcrSelf = 1 << 18;

    /// <summary>Registers that WRMSR knows, a bit each (SDM vol. 3, table 11-6).</summary>
    private const ulong WritableMsrs = 0xc1fd_0100_0000_8900;

    /// <summary>
    /// The state after power-up and INIT, but for IA32_APIC_BASE, which the caller has set or INIT leaves alone (SDM
    /// vol. 3, 11.4.7). The boot CPU's LINT0 lets the PIC through, as if firmware had run: not all VMMs see to it.
    /// </summary>
    public static void Reset(ref Vcpu vcpu)
    {
        ref Lapic apic = ref vcpu.Apic;
        apic.Errors = 0;
        apic.Registers = default;
        apic.NoteRequests();
        apic.Registers[ApicRegister.Svr] = SvrReset;
        apic.Registers[ApicRegister.Dfr] = FlatModel | DfrFixed;
        MaskLvts(ref apic);
        if ((vcpu.Msrs.ApicBase & ApicBase.Bsp) != 0)
            apic.Registers[ApicRegister.Lint0] = ExtInt;
        Identify(ref vcpu);
        SetTpr(ref vcpu, 0);
        apic.Timer = default;
        TVendor.SetTimer(ref vcpu, 0, 0, halts: false);
    }

    /// <summary>
    /// Writes IA32_APIC_BASE. False for reserved bits, for x2APIC mode without the feature, and, unless user space
    /// restores state, for a way between modes that is not in SDM vol. 3, figure 11-32.
    /// </summary>
    public static bool TrySetBase(ref Vcpu vcpu, ulong value, bool host)
    {
        if (!IsValidBase(ref vcpu, value))
            return false;
        ApicMode old = vcpu.Apic.Mode, mode = ModeOf(value);
        if (!host && (old, mode) is (ApicMode.X2apic, ApicMode.Xapic) or (ApicMode.Disabled, ApicMode.X2apic))
            return false;
        vcpu.Msrs.ApicBase = value;
        ControlRegisters<TVendor>.UpdateDependents(ref vcpu);
        if (mode == ApicMode.Disabled && mode != old)
            Reset(ref vcpu);
        else
            Identify(ref vcpu);
        return true;
    }

    /// <summary>A value that IA32_APIC_BASE can have, whatever it has now.</summary>
    public static bool IsValidBase(ref Vcpu vcpu, ulong value)
    {
        bool hasX2 = vcpu.HasApic && vcpu.Cpuid.Has(Feature.X2apic);
        ulong reserved = ApicBase.Reserved & ~(hasX2 ? ApicBase.X2apic : 0);
        return (value & (vcpu.Cpuid.ReservedGpa | reserved)) == 0 && ModeOf(value) != ApicMode.Invalid;
    }

    /// <summary>
    /// Reads the page in xAPIC mode, 1 to 8 bytes from <paramref name="offset"/>. What lies between the registers, 4
    /// bytes at every 16, reads as zero.
    /// </summary>
    public static void Read(ref Vcpu vcpu, uint offset, Span<byte> data)
    {
        int register = (int)offset / 16, place = (int)offset % 16;
        bool exists = register < ApicRegister.Count && place < sizeof(uint);
        ulong value = exists ? Value(ref vcpu, register) >> (8 * place) : 0;
        MemoryMarshal.AsBytes(new Span<ulong>(ref value))[..data.Length].CopyTo(data);
    }

    /// <summary>Writes to the page in xAPIC mode. Only whole registers can be written; all else is ignored.</summary>
    public static void Write(ref Vcpu vcpu, uint offset, ReadOnlySpan<byte> data)
    {
        if (data.Length != sizeof(uint) || offset % 16 != 0 || offset / 16 >= ApicRegister.SelfIpi)
            return;
        int register = (int)(offset / 16);
        uint writable = Writable(ref vcpu, register);
        if (writable != 0 || register is ApicRegister.Eoi or ApicRegister.Esr)
            Set(ref vcpu, register, BinaryPrimitives.ReadUInt32LittleEndian(data) & writable);
    }

    /// <summary>
    /// The CPU has put what the guest wrote into the page, at <paramref name="offset"/>: does what else a write does.
    /// </summary>
    public static void Written(ref Vcpu vcpu, uint offset)
    {
        int register = (int)(offset / 16) % ApicRegister.Count;
        if (register == ApicRegister.Id)
            Identify(ref vcpu);
        else
            Set(ref vcpu, register, vcpu.Apic.Registers[register] & Writable(ref vcpu, register));
    }

    /// <summary>MSRs 800H to 8FFH. False (#GP) outside x2APIC mode and for what cannot be read.</summary>
    public static bool TryReadMsr(ref Vcpu vcpu, uint index, out ulong value)
    {
        uint register = index - FirstMsr;
        value = 0;
        if (!HasMsr(ref vcpu, register, ApicRegister.ReadableMsrs))
            return false;
        value = Value(ref vcpu, (int)register);
        if (register == ApicRegister.Icr)
            value |= (ulong)vcpu.Apic.Registers[ApicRegister.IcrHigh] << 32;
        return true;
    }

    /// <summary>
    /// MSRs 800H to 8FFH. False (#GP) outside x2APIC mode, for what cannot be written, and for reserved bits.
    /// </summary>
    public static bool TryWriteMsr(ref Vcpu vcpu, uint index, ulong value)
    {
        uint register = index - FirstMsr;
        if (!HasMsr(ref vcpu, register, WritableMsrs))
            return false;
        uint writable = Writable(ref vcpu, (int)register);
        ulong allowed = writable | Ignored((int)register);
        if (register == ApicRegister.Icr)
            allowed |= 0xffffffff_00000000;
        if ((value & ~allowed) != 0)
            return false;
        if (register == ApicRegister.Icr)
            vcpu.Apic.Registers[ApicRegister.IcrHigh] = (uint)(value >> 32);
        Set(ref vcpu, (int)register, (uint)value & writable);
        return true;
    }

    /// <summary>The task-priority register; CR8 is its upper half.</summary>
    public static void SetTpr(ref Vcpu vcpu, byte value)
    {
        vcpu.Apic.Registers[ApicRegister.Tpr] = value;
        vcpu.Events.Cr8 = (byte)(value >> 4);
        vcpu.Apic.UpdatePriority();
    }

    /// <summary>
    /// The end of the interrupt of highest priority in service; the chips learn of those that they wait for.
    /// </summary>
    public static void Eoi(ref Vcpu vcpu) => Ended(ref vcpu, vcpu.Apic.EndHighest());

    /// <summary>What a vector's end means to others; -1: nothing has ended.</summary>
    public static void Ended(ref Vcpu vcpu, int vector)
    {
        if (vector >= 0 && IsEndTold(ref vcpu, vector))
            IrqChip.EndOfInterrupt(ref vcpu, new Vector((byte)vector));
    }

    /// <summary>Whether the chips learn of the end of an interrupt.</summary>
    public static bool IsEndTold(ref Vcpu vcpu, int vector) =>
        (vcpu.Apic.Registers[ApicRegister.Svr] & SuppressEoi) == 0
        && (vcpu.Apic.IsLevel(vector) || vcpu.Vm.Irqchip.EoiVectors.Contains((byte)vector));

    /// <summary>KVM_GET_LAPIC.</summary>
    public static int Get(ref Vcpu vcpu, out kvm_lapic_state state)
    {
        // What is due is posted first, so that it is in IRR.
        ApicTimer<TVendor>.Expired(ref vcpu);
        vcpu.Apic.TakePosted();
        state = default;
        Span<uint> page = MemoryMarshal.Cast<byte, uint>((Span<byte>)state.regs);
        for (int register = 0; register < ApicRegister.Count; register++)
            page[register * Stride] = Value(ref vcpu, register);
        if (!vcpu.Vm.Irqchip.Wide)
            page[ApicRegister.Id * Stride] = vcpu.Id << 24;
        return Errno.Ok;
    }

    /// <summary>
    /// KVM_SET_LAPIC. Bits that a register does not have are dropped, and what follows from others is computed anew.
    /// EINVAL for an id that is not the vCPU's, where the id has 32 bits.
    /// </summary>
    public static int Set(ref Vcpu vcpu, in kvm_lapic_state state)
    {
        ReadOnlySpan<uint> page = MemoryMarshal.Cast<byte, uint>((ReadOnlySpan<byte>)state.regs);
        ref Lapic apic = ref vcpu.Apic;
        if (apic.Mode == ApicMode.X2apic && vcpu.Vm.Irqchip.Wide && page[ApicRegister.Id * Stride] != vcpu.Id)
            return Errno.EINVAL;
        for (int register = 0; register < ApicRegister.Count; register++)
        {
            uint kept = register switch
            {
                // Vectors below 16 have no priority to be taken with, so that they may stay in IRR, as KVM has it.
                ApicRegister.Isr or ApicRegister.Tmr => ~0u << Lapic.FirstVector,
                > ApicRegister.Isr and < ApicRegister.Esr => ~0u,
                ApicRegister.Esr => 0xff,
                ApicRegister.SelfIpi => 0,
                ApicRegister.IcrHigh when apic.Mode == ApicMode.X2apic => ~0u,
                _ => Writable(ref vcpu, register),
            };
            apic.Registers[register] = page[register * Stride] & kept;
        }
        apic.Registers[ApicRegister.Dfr] |= DfrFixed;
        MaskLvts(ref apic);
        Identify(ref vcpu);
        SetTpr(ref vcpu, apic.Tpr);
        ApicTimer<TVendor>.Restore(ref vcpu, page[ApicRegister.CurrentCount * Stride]);
        apic.NoteRequests();
        vcpu.Shared.Request(VcpuRequests.Event);
        return Errno.Ok;
    }

    private static bool HasMsr(ref Vcpu vcpu, uint register, ulong registers) =>
        vcpu.Apic.Mode == ApicMode.X2apic && register < ApicRegister.Count && (registers >> (int)register & 1) != 0;

    private static uint Value(ref Vcpu vcpu, int register) => register == ApicRegister.CurrentCount
        ? ApicTimer<TVendor>.CurrentCount(ref vcpu) : vcpu.Apic.Registers[register];

    private static ApicMode ModeOf(ulong apicBase) => (ApicMode)(apicBase >> 10 & 3);

    /// <summary>Takes the mode from IA32_APIC_BASE, and sets what says who this is and what it can.</summary>
    private static void Identify(ref Vcpu vcpu)
    {
        ref Lapic apic = ref vcpu.Apic;
        apic.Mode = ModeOf(vcpu.Msrs.ApicBase);
        bool isX2 = apic.Mode == ApicMode.X2apic;
        uint id = vcpu.Id;
        apic.Registers[ApicRegister.Id] = isX2 ? id : id << 24;
        // An IOAPIC in the kernel has no EOI register, through which directed ends would come.
        apic.Registers[ApicRegister.Version] =
            vcpu.Vm.Irqchip.Mode == IrqchipMode.Split ? Version | CanSuppressEoi : Version;
        ref uint ldr = ref apic.Registers[ApicRegister.Ldr];
        ldr = isX2 ? id >> 4 << 16 | 1u << (int)(id & 15) : ldr & 0xff000000;
        TVendor.UpdateApic(ref vcpu);
    }

    /// <summary>The bits of a register that software can set and that are kept.</summary>
    private static uint Writable(ref Vcpu vcpu, int register) => register switch
    {
        ApicRegister.Tpr or ApicRegister.SelfIpi => 0xff,
        ApicRegister.Ldr or ApicRegister.IcrHigh => 0xff000000,
        ApicRegister.Dfr => FlatModel,
        ApicRegister.Svr => 0x3ffu | (vcpu.Vm.Irqchip.Mode == IrqchipMode.Split ? SuppressEoi : 0),
        // The page keeps reserved bits too, as KVM does; the MSR refuses them. Nobody sees a message under way.
        ApicRegister.Icr => vcpu.Apic.Mode == ApicMode.X2apic ? 0xccfff : ~IcrBusy,
        ApicRegister.LvtTimer => 0x300ffu | (vcpu.Cpuid.Has(Feature.TscDeadline) ? LapicTimer.TscDeadline : 0),
        ApicRegister.LvtThermal or ApicRegister.LvtPerformance => 0x107ff,
        ApicRegister.Lint0 or ApicRegister.Lint1 => 0x1a7ff,
        ApicRegister.LvtError => 0x100ff,
        ApicRegister.InitialCount => ~0u,
        ApicRegister.Divide => 0xb,
        _ => 0,
    };

    /// <summary>Read-only bits that are no fault to write: delivery status, and LINT's remote IRR.</summary>
    private static uint Ignored(int register) => register switch
    {
        ApicRegister.Lint0 or ApicRegister.Lint1 => 1 << 12 | 1 << 14,
        ApicRegister.Icr or (>= ApicRegister.LvtTimer and <= ApicRegister.LvtError) => 1 << 12,
        _ => 0,
    };

    /// <summary>Writes a register that takes this value, and does what follows.</summary>
    private static void Set(ref Vcpu vcpu, int register, uint value)
    {
        ref Lapic apic = ref vcpu.Apic;
        if (register is >= ApicRegister.LvtTimer and <= ApicRegister.LvtError && !apic.IsEnabled)
            value |= Masked;
        switch (register)
        {
            case ApicRegister.Eoi: Eoi(ref vcpu); break;
            case ApicRegister.Tpr: SetTpr(ref vcpu, (byte)value); break;
            case ApicRegister.SelfIpi: SendIpi(ref vcpu, value | IcrSelf); break;
            case ApicRegister.Esr: apic.Registers[register] = Interlocked.Exchange(ref apic.Errors, 0); break;
            case ApicRegister.LvtTimer: ApicTimer<TVendor>.SetMode(ref vcpu, value); break;
            case ApicRegister.InitialCount: ApicTimer<TVendor>.SetInitialCount(ref vcpu, value); break;
            case ApicRegister.Divide: ApicTimer<TVendor>.SetDivide(ref vcpu, value); break;
            default:
                apic.Registers[register] = register == ApicRegister.Dfr ? value | DfrFixed : value;
                if (register == ApicRegister.Icr)
                    SendIpi(ref vcpu, value);
                else if (register == ApicRegister.Svr)
                    MaskLvts(ref apic);
                break;
        }
    }

    /// <summary>While software-disabled all entries are masked and stay so (SDM vol. 3, 11.4.7.2).</summary>
    private static void MaskLvts(ref Lapic apic)
    {
        uint mask = (apic.Registers[ApicRegister.Svr] & Lapic.SoftwareEnable) == 0 ? Masked : 0;
        for (int register = ApicRegister.LvtTimer; register <= ApicRegister.LvtError; register++)
            apic.Registers[register] |= mask;
    }

    /// <summary>
    /// A write to ICR's low half. As of the Pentium 4 such messages are edge-triggered whatever ICR says, and INIT's
    /// de-assertion does nothing (SDM vol. 3, 11.6.1).
    /// </summary>
    private static void SendIpi(ref Vcpu vcpu, uint icr)
    {
        uint destination = vcpu.Apic.Registers[ApicRegister.IcrHigh];
        bool isX2 = vcpu.Apic.Mode == ApicMode.X2apic;
        InterruptMessage message = new()
        {
            Destination = isX2 ? destination : destination >> 24, Wide = isX2, Logical = (icr >> 11 & 1) != 0,
            Mode = (DeliveryMode)(icr >> 8 & 7), Vector = new Vector((byte)icr), Shorthand = (Shorthand)(icr >> 18 & 3),
        };
        if (message.Mode is DeliveryMode.RemoteRead or DeliveryMode.ExtInt
            || message.Mode == DeliveryMode.Init && (icr & (IcrLevel | IcrAssert)) == IcrLevel)
            return;
        if (message.Mode is DeliveryMode.Fixed or DeliveryMode.LowestPriority && (byte)icr < Lapic.FirstVector)
            ApicBus.RaiseError(ref vcpu, SendIllegalVector, own: true);
        else
            ApicBus.Send(ref vcpu.Vm, in message, vcpu.Id);
    }
}
