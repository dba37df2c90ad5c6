// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Tests.Host;
using SharpKvm.Vmx;

namespace SharpKvm.Tests.Vmx;

/// <summary>A VMCS: that of the simulated CPU, or a copy of it.</summary>
internal readonly struct VmcsImage(Dictionary<uint, ulong> fields)
{
    public ulong this[VmcsField field]
    {
        get => fields.GetValueOrDefault((uint)field);
        set => fields[(uint)field] = value;
    }

    public void Set(VmcsField field, ulong value) => fields[(uint)field] = value;
    public ulong Rip => this[VmcsField.Rip];
    public bool LongMode => ((EntryControls)this[VmcsField.EntryControls] & EntryControls.LongMode) != 0;
    public bool Has(PrimaryControls control) => ((PrimaryControls)this[VmcsField.PrimaryControls] & control) != 0;

    /// <summary>As <see cref="Injection"/> has it, with the error code in the upper half; 0: nothing.</summary>
    public ulong Injected
    {
        get
        {
            EventInjection next = new(this[VmcsField.EntryInterruption]);
            return !next.Valid ? Injection.None
                : next.HasErrorCode ? next.Raw | this[VmcsField.EntryErrorCode] << 32 : next.Raw;
        }
    }

    public VmcsImage Copy() => new(new(fields));
}

/// <summary>What a guest does in its turn, before it exits. RSP, RIP and RFLAGS are in the VMCS.</summary>
internal delegate void GuestWork(VmcsImage vmcs, ref GuestRegisters registers);

/// <summary>One turn of the guest and how it ends.</summary>
internal sealed class Turn
{
    private bool _enters = true;
    private uint _reason;
    private ulong _qualification, _address, _length, _information, _interrupted, _refusal;
    private GuestWork? _work;

    public static Turn Exit(uint reason, ulong qualification = 0) =>
        new() { _reason = reason, _qualification = qualification };

    /// <summary>An exit by an instruction of <paramref name="length"/> bytes.</summary>
    public static Turn Instruction(uint reason, ulong length, ulong qualification = 0) =>
        new() { _reason = reason, _qualification = qualification, _length = length };

    /// <summary>An I/O instruction (SDM vol. 3, table 28-5).</summary>
    public static Turn Port(ushort port, uint size, bool input, ulong length = 1) =>
        Instruction(ExitReason.Port, length, (ulong)port << 16 | size - 1 | (input ? 8u : 0));

    /// <summary>An exception that exits, with its interruption information and error code (25.9.2).</summary>
    public static Turn Exception(ulong information, ulong qualification = 0, ulong length = 0) => new()
    {
        _reason = ExitReason.Exception, _information = information, _qualification = qualification, _length = length,
    };

    /// <summary>An EPT violation by a data access, or with this qualification (table 28-7).</summary>
    public static Turn EptViolation(ulong address, bool write = false, ulong? qualification = null) => new()
    {
        _reason = ExitReason.EptViolation, _address = address,
        _qualification = qualification ?? (write ? 0x182u : 0x181),
    };

    /// <summary>VM entry fails before it begins: VMfailValid with an error number (SDM vol. 3, 31.4).</summary>
    public static Turn VmFail(ulong error) => new() { _refusal = error };

    /// <summary>A request, a signal or the scheduler came first: the guest does not run.</summary>
    public static Turn NotEntered() => new() { _enters = false };

    /// <summary>The exit came while <paramref name="injection"/> was being delivered (25.9.3).</summary>
    public Turn During(ulong injection)
    {
        _interrupted = injection;
        return this;
    }

    public Turn Doing(GuestWork work)
    {
        _work = work;
        return this;
    }

    public bool Play(VmcsImage vmcs, ref VcpuShared shared)
    {
        if (!_enters)
            return false;
        shared.ExitReason = _refusal != 0 ? uint.MaxValue : (uint)_reason;
        vmcs[VmcsField.InstructionError] = _refusal;
        vmcs[VmcsField.ExitReason] = _reason;
        vmcs[VmcsField.Qualification] = _qualification;
        // Nothing else changes when an entry fails (27.8).
        if (_refusal != 0 || (_reason & ExitReason.EntryFailure) != 0)
            return true;
        // An NMI that is injected blocks others (27.6.1.1), and an exit clears the valid bit (28.2).
        if (vmcs.Injected == Injection.Nmi)
            vmcs[VmcsField.Interruptibility] |= Interruptibility.Nmi;
        vmcs[VmcsField.EntryInterruption] &= ~(1ul << 31);
        vmcs[VmcsField.PendingDebug] = 0;
        _work?.Invoke(vmcs, ref shared.Registers);
        vmcs[VmcsField.GuestPhysicalAddress] = _address;
        vmcs[VmcsField.InstructionLength] = _length;
        vmcs[VmcsField.ExitInterruption] = (uint)_information;
        vmcs[VmcsField.ExitErrorCode] = _information >> 32;
        vmcs[VmcsField.InterruptedEvent] = (uint)_interrupted;
        vmcs[VmcsField.InterruptedErrorCode] = _interrupted >> 32;
        return true;
    }
}

/// <summary>A physical CPU with VMX: <see cref="ScriptedProcessor{TTurn, TBlock}"/>.</summary>
internal sealed class VmxProcessor(SimulatedThread thread, VmcsImage vmcs)
    : ScriptedProcessor<Turn, VmcsImage>(thread)
{
    public bool Enter(ref VcpuShared shared)
    {
        if (ChecksState)
        {
            CheckModes();
            CheckInterruptibility();
            CheckInjection();
        }
        return TryTakeTurn(vmcs.Copy(), out Turn? turn) && turn.Play(vmcs, ref shared);
    }

    /// <summary>Control registers, EFER, TR, PDPTEs (SDM vol. 3, 27.3.1.1, 27.3.1.2 and 27.3.1.6).</summary>
    private void CheckModes()
    {
        const ulong Vmxe = 1 << 13, Unusable = 1 << 16, ReservedPdpte = 0xfff0_0000_0000_01e6;
        (ulong cr0, ulong cr4, ulong efer) =
            (vmcs[VmcsField.Cr0], vmcs[VmcsField.Cr4], vmcs[VmcsField.GuestEfer]);
        bool paging = (cr0 & Cr0.Pg) != 0, pae = (cr4 & Cr4.Pae) != 0;
        Assert.That((cr0 & Cr0.Ne, cr4 & Vmxe), Is.EqualTo((Cr0.Ne, Vmxe)), "fixed bits");
        Assert.That(cr0 & (Cr0.Pg | Cr0.Pe), Is.Not.EqualTo(Cr0.Pg), "CR0.PG without CR0.PE");
        Assert.That((efer & Efer.Lma) != 0, Is.EqualTo(vmcs.LongMode), "EFER.LMA");
        Assert.That(paging && (efer & Efer.Lme) != 0, Is.EqualTo(vmcs.LongMode), "EFER.LME");
        Assert.That(vmcs.LongMode && !pae, Is.False, "long mode without CR4.PAE");
        Assert.That(vmcs[VmcsField.LinkPointer], Is.EqualTo(ulong.MaxValue), "VMCS link pointer");
        Assert.That(vmcs[VmcsField.Rflags] & (Rflags.Fixed | 1 << 3), Is.EqualTo(Rflags.Fixed), "RFLAGS");
        Assert.That(vmcs.Rip >> 32 == 0 || vmcs.LongMode, "RIP");
        ulong task = vmcs[Vmcs.Of(VmcsField.AccessRights, SegmentName.Tr)];
        Assert.That(task & Unusable, Is.Zero, "TR");
        Assert.That(task & 0xf, vmcs.LongMode ? Is.EqualTo(11) : Is.AnyOf(3, 11), "TR");
        for (uint i = 0; i < 4 && paging && pae && !vmcs.LongMode; i++)
        {
            ulong entry = vmcs[VmcsField.GuestPdpte + 2 * i];
            Assert.That((entry & 1) == 0 || (entry & ReservedPdpte) == 0, "PDPTE");
        }
    }

    /// <summary>27.3.1.4 and 27.3.1.5.</summary>
    private void CheckInterruptibility()
    {
        const ulong Shadow = Interruptibility.Sti | Interruptibility.MovSs;
        ulong state = vmcs[VmcsField.Interruptibility], rflags = vmcs[VmcsField.Rflags];
        Assert.That(state & Shadow, Is.Not.EqualTo(Shadow), "both shadows");
        Assert.That((state & Interruptibility.Sti) == 0 || (rflags & Rflags.If) != 0, "shadow of STI without IF");
        bool steps = (vmcs[VmcsField.PendingDebug] & DebugBits.Dr6Bs) != 0;
        if ((state & Shadow) != 0)
            Assert.That(steps, Is.EqualTo((rflags & Rflags.Tf) != 0), "the step behind a shadow");
        else
            Assert.That(steps, Is.False, "a trap out of nothing");
        EventInjection next = new(vmcs.Injected);
        if (next is { Valid: true, Type: EventInjection.EventType.Interrupt })
            Assert.That((state & Shadow, rflags & Rflags.If), Is.EqualTo((0ul, Rflags.If)), "interrupt");
        if (next is { Valid: true, Type: EventInjection.EventType.Nmi })
            Assert.That(state & (Shadow | Interruptibility.Nmi), Is.Zero, "NMI");
    }

    /// <summary>Event injection (27.2.1.3).</summary>
    private void CheckInjection()
    {
        const uint WithErrorCode = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17;
        EventInjection next = new(vmcs.Injected);
        if (!next.Valid)
            return;
        Assert.That(next.Raw & 0x7ffff000, Is.Zero, "reserved bits");
        bool exception = next.Type == EventInjection.EventType.Exception;
        bool pushes = exception && (WithErrorCode >> next.Vector & 1) != 0 && (vmcs[VmcsField.Cr0] & Cr0.Pe) != 0;
        Assert.That(next.HasErrorCode, Is.EqualTo(pushes), "error code");
        Assert.That(next.ErrorCode >> 15, Is.Zero, "error code");
        if (exception)
            Assert.That(next.Vector, Is.LessThan(32), "vector");
        if (next.Type == EventInjection.EventType.Nmi)
            Assert.That(next.Vector, Is.EqualTo(2), "vector");
    }
}
