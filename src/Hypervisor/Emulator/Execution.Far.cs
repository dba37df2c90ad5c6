// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>
/// Far branches, interrupts and returns (SDM vol. 2, CALL, INT n, IRET, JMP, RET; vol. 3, 5.8, 6.12 and 6.14).
/// </summary>
internal ref partial struct Execution<TMachine>
{
    /// <summary>As they lie on the stack in and out of virtual-8086 mode, behind the stack pointer.</summary>
    private static ReadOnlySpan<SegmentName> VirtualSegments =>
        [SegmentName.Ss, SegmentName.Es, SegmentName.Ds, SegmentName.Fs, SegmentName.Gs];

    private ulong Selector(SegmentName name) => _machine.GetSegment(name).Selector;

    /// <summary>
    /// These change stack, privilege and mode step by step, because each step is checked as the one before it has left
    /// the machine; when one fails, all is as it was. A task that has been entered stays: the fault is its own.
    /// </summary>
    private bool Transfer(Op operation, in Fault raised)
    {
        Segment code = _machine.GetSegment(SegmentName.Cs), stack = _machine.GetSegment(SegmentName.Ss);
        int cpl = _machine.Cpl;
        bool done = operation is Op.CallFar or Op.JmpFar ? FarBranch(call: operation == Op.CallFar)
            : operation is Op.RetFar or Op.Iret ? FarReturn(interrupt: operation == Op.Iret)
            : Interrupt(in raised, software: operation <= Op.Into);
        Result.Returned = operation == Op.Iret;
        if (done || Result.TaskSwitched)
            return done;
        _machine.SetSegment(SegmentName.Cs, in code);
        _machine.SetSegment(SegmentName.Ss, in stack);
        _machine.Cpl = cpl;
        return false;
    }

    /// <summary>INT n, INT3, INTO and INT1.</summary>
    private bool RaiseByInstruction(Op operation)
    {
        byte vector = operation switch { Op.Int1 => 1, Op.Int3 => 3, Op.Into => 4, _ => (byte)_i.Immediate };
        return operation == Op.Into && (Registers.Rflags & Rflags.Of) == 0
            || (operation != Op.Int || FlagsPermitted()) && Transfer(operation, new() { Vector = vector });
    }

    /// <summary>An event that comes before the next instruction.</summary>
    public void Deliver(in Fault raised, bool software)
    {
        SetMode();
        Segment code = _machine.GetSegment(SegmentName.Cs);
        _code = SizeOf(in code);
        GuestRegisters before = Registers;
        _next = before.Rip;
        if (Transfer(software ? Op.Int : Op.Int1, in raised))
            Registers.Rip = _next;
        else if (!Result.TaskSwitched)
            Registers = before;
    }

    private bool FarBranch(bool call)
    {
        int size = _i.OperandSize, cpl = _machine.Cpl;
        ulong offset = _i.Immediate, selector = _i.Immediate2;
        if (_i.IsMemory && !LoadFarPointer(out offset, out selector))
            return false;
        if (!HasDescriptors)
            return (!call || PushReturn(size)) && Enter(RealSegment(SegmentName.Cs, selector), offset, cpl);
        if (!ReadDescriptor(selector, out Descriptor target))
            return false;
        int rpl = (int)selector & 3, type = target.Type & ~SystemType.Wide;
        if (target.Type < 0)
        {
            return (rpl <= cpl || target.Segment.IsConforming || Refuse(_refusal, selector))
                && ReadSegment(SegmentName.Cs, selector, cpl, out Segment code)
                && (!call || PushReturn(size)) && Enter(code, offset, cpl);
        }
        bool known = type is SystemType.Tss or SystemType.CallGate || target.Type == SystemType.TaskGate;
        if (!known || target.Segment.Dpl < Math.Max(rpl, cpl))
            return Refuse(_refusal, selector);
        if (IsLongMode)
            return Unsupported();
        if (!target.Segment.Present)
            return Refuse(Fault.SegmentNotPresent, selector);
        return type == SystemType.CallGate ? ThroughGate(in target, default, jump: !call, interrupt: false)
            : SwitchTask(type == SystemType.Tss ? selector : target.GateSelector,
                call ? TaskSwitchCause.Call : TaskSwitchCause.Jump, default);
    }

    private bool Interrupt(in Fault raised, bool software)
    {
        DescriptorTable table = _machine.Idtr;
        if (!_protected)
        {
            if (raised.Vector * 4 + 3 > table.Limit)
                return Raise(Fault.GeneralProtection);
            if (!ReadLinear(table.Base + raised.Vector * 4u, 4, Rights.System, out ulong target)
                || !Push(2, Registers.Rflags) || !PushReturn(2)
                || !Enter(RealSegment(SegmentName.Cs, target >> 16), target & 0xffff, 0))
                return false;
            Registers.Rflags &= ~(Rflags.If | Rflags.Tf | Rflags.Ac);
            return true;
        }
        if (IsLongMode)
            return Unsupported();
        _external = software ? 0 : 1u;
        uint error = raised.Vector * 8u | 2;
        if (!ReadEntry(table.Base, table.Limit, raised.Vector * 8u, error, out Descriptor gate))
            return false;
        bool toTask = gate.Type == SystemType.TaskGate;
        bool known = toTask || (gate.Type & ~(SystemType.Wide | 1)) == SystemType.InterruptGate;
        if (!known || software && gate.Segment.Dpl < _machine.Cpl)
            return Raise(Fault.GeneralProtection, error | _external);
        if (!gate.Segment.Present)
            return Raise(Fault.SegmentNotPresent, error | _external);
        return toTask ? SwitchTask(gate.GateSelector, TaskSwitchCause.Gate, in raised)
            : ThroughGate(in gate, in raised, jump: false, interrupt: true);
    }

    /// <summary>
    /// Enters the code of a call, interrupt or trap gate, on a stack of its own if it is more privileged.
    /// </summary>
    private bool ThroughGate(in Descriptor gate, in Fault raised, bool jump, bool interrupt)
    {
        bool virtual8086 = _virtual8086;
        int cpl = _machine.Cpl, size = gate.Segment.FieldSize;
        ulong pointer = Registers[Gpr.Rsp], flags = Registers.Rflags, back = _next;
        ulong selector = Selector(SegmentName.Cs), stack = Selector(SegmentName.Ss);
        if (!ReadSegment(SegmentName.Cs, gate.GateSelector, cpl, out Segment code, inner: !jump))
            return false;
        int level = code.IsConforming ? cpl : code.Dpl;
        if (virtual8086 && level != 0)
            return Refuse(_refusal, gate.GateSelector);
        // Parameters of a call gate are not copied.
        if (level != cpl && !interrupt && (gate.Raw >> 32 & 31) != 0)
            return Unsupported();
        if (interrupt)
            Registers.Rflags &= ~(Rflags.Tf | Rflags.Nt | Rflags.Rf | Rflags.Vm | (gate.Type % 2 == 0 ? Rflags.If : 0));
        _virtual8086 = false;
        if (!Enter(code, gate.GateOffset, level) || level != cpl && !LoadInnerStack(level))
            return false;
        for (int n = VirtualSegments.Length - 1; virtual8086 && n > 0; n--)
            if (!Push(size, Selector(VirtualSegments[n])))
                return false;
        if (level != cpl && !(Push(size, stack) && Push(size, pointer)) || interrupt && !Push(size, flags)
            || !jump && !(Push(size, selector) && Push(size, back))
            || raised.HasErrorCode && !Push(size, raised.ErrorCode))
            return false;
        for (int n = 1; virtual8086 && n < VirtualSegments.Length; n++)
            _machine.SetSegment(VirtualSegments[n], default);
        return true;
    }

    private bool FarReturn(bool interrupt)
    {
        int size = _i.OperandSize, cpl = _machine.Cpl;
        ulong flags = 0, pointer = 0, stack = 0;
        if (interrupt && !FlagsPermitted())
            return false;
        if (interrupt && HasDescriptors && (Registers.Rflags & Rflags.Nt) != 0)
        {
            return Permit(!IsLongMode)
                && ReadLinear(_machine.GetSegment(SegmentName.Tr).Base, 2, Rights.System, out ulong link)
                && SwitchTask(link, TaskSwitchCause.Iret, default);
        }
        if (!Pop(size, out ulong offset) || !Pop(size, out ulong selector) || interrupt && !Pop(size, out flags))
            return false;
        SetStackPointer(Registers[Gpr.Rsp] + _i.Immediate);
        int level = HasDescriptors ? (int)selector & 3 : cpl;
        bool outer = HasDescriptors && (level > cpl || interrupt && Long64);
        Segment code = RealSegment(SegmentName.Cs, selector);
        if (HasDescriptors && (flags & Rflags.Vm) != 0 && cpl == 0 && !IsLongMode)
            return EnterVirtual8086(selector, offset, flags);
        if (level < cpl)
            return Refuse(_refusal, selector);
        if (HasDescriptors && !ReadSegment(SegmentName.Cs, selector, level, out code)
            || outer && (!Pop(size, out pointer) || !Pop(size, out stack)))
            return false;
        // By the privilege that is left.
        if (interrupt)
            SetFlags(flags, size);
        if (!Enter(code, offset, level) || outer && !LoadSegment(SegmentName.Ss, stack, level))
            return false;
        if (!outer)
            return true;
        SetStackPointer(pointer + _i.Immediate);
        // What the outer level may not see does not stay.
        for (SegmentName name = SegmentName.Es; name <= SegmentName.Gs; name++)
            if (_machine.GetSegment(name) is { IsConforming: false } segment && segment.Dpl < level)
                _machine.SetSegment(name, default);
        return true;
    }

    private bool EnterVirtual8086(ulong selector, ulong offset, ulong flags)
    {
        InlineArray8<ulong> popped = default;
        for (int n = 0; n <= VirtualSegments.Length; n++)
            if (!Pop(4, out popped[n]))
                return false;
        SetFlags(flags, 4);
        Registers.Rflags |= Rflags.Vm;
        for (int n = 0; n < VirtualSegments.Length; n++)
            SetVirtualSegment(VirtualSegments[n], popped[n + 1]);
        SetVirtualSegment(SegmentName.Cs, selector);
        _machine.Cpl = 3;
        Registers[Gpr.Rsp] = popped[0];
        _next = offset & 0xffff;
        return true;
    }

    private void SetVirtualSegment(SegmentName name, ulong selector)
    {
        const ushort Rights = Segment.CodeOrData | Segment.PresentBit | 3 << Segment.DplShift | 3;
        _machine.SetSegment(name, new() { Limit = ushort.MaxValue, Attributes = Rights });
        _machine.SetSegment(name, RealSegment(name, selector));
    }

    private bool PushReturn(int size) => Push(size, Selector(SegmentName.Cs)) && Push(size, _next);

    private bool Enter(Segment code, ulong offset, int level)
    {
        _code = SizeOf(in code);
        if (Long64 ? !Canonical(offset) : offset > code.Limit)
            return Refuse(Fault.GeneralProtection, 0);
        if (HasDescriptors)
            code.Selector = (ushort)(code.Selector & ~3 | level);
        _machine.SetSegment(SegmentName.Cs, in code);
        _machine.Cpl = level;
        _next = offset;
        return true;
    }

    /// <summary>Loads the stack of an inner level from the TSS (SDM vol. 3, 5.8.5 and 6.12.1).</summary>
    private bool LoadInnerStack(int level)
    {
        Segment task = _machine.GetSegment(SegmentName.Tr);
        uint size = (uint)task.FieldSize, at = size + 2 * size * (uint)level;
        _refusal = Fault.InvalidTss;
        if (!task.Present || at + size + 1 > task.Limit)
            return Refuse(_refusal, task.Selector);
        return ReadLinear(task.Base + at, (int)size, Rights.System, out ulong pointer)
            && ReadLinear(task.Base + at + size, 2, Rights.System, out ulong selector)
            && LoadSegment(SegmentName.Ss, selector, level) && SetStackPointer(pointer);
    }
}
