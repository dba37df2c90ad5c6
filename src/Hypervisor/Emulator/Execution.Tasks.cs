// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>
/// Hardware task switches (SDM vol. 3, 8.3). What a TSS holds of a task are fields of 4 or 2 bytes: EIP, EFLAGS,
/// EAX … EDI, ES, CS, SS, DS, FS, GS, LDT. That of 16 bits has neither FS nor GS.
/// </summary>
internal ref partial struct Execution<TMachine>
{
    private const int FlagsField = 1, FirstRegister = 2, FirstSegment = 10;
    private const ulong Cr3Offset = 0x1c, LoadedFlags = 0x3d7fd5;

    private static ulong FieldAddress(in Segment task, int field) =>
        task.Base + (task.FieldSize == 4 ? 0x20u : 0x0e) + (uint)(field * task.FieldSize);

    private static int SegmentsEnd(in Segment task) => FirstSegment + (task.FieldSize == 4 ? 6 : 4);

    /// <summary>
    /// Goes to the task of a TSS; who may is checked already. <see cref="_next"/> is where the old one goes on.
    /// </summary>
    private bool SwitchTask(ulong selector, TaskSwitchCause cause, in Fault raised)
    {
        bool returns = cause == TaskSwitchCause.Iret, nests = cause is TaskSwitchCause.Call or TaskSwitchCause.Gate;
        _refusal = returns ? Fault.InvalidTss : Fault.GeneralProtection;
        if (!ReadDescriptor(selector, out Descriptor next))
            return false;
        ref Segment task = ref next.Segment;
        int wanted = returns ? SystemType.Tss | SystemType.Busy : SystemType.Tss;
        if ((selector & 4) != 0 || (next.Type & ~SystemType.Wide) != wanted)
            return Refuse(_refusal, selector);
        if (!task.Present || task.Limit < (task.FieldSize == 4 ? 0x67 : 0x2b))
            return Refuse(task.Present ? Fault.InvalidTss : Fault.SegmentNotPresent, selector);

        Segment old = _machine.GetSegment(SegmentName.Tr);
        ulong oldAccess = _machine.Gdtr.Base + (old.Selector & 0xfff8u) + 5, access = 0;
        InlineArray16<ulong> state = default, saved = default;
        saved[0] = _next;
        saved[FlagsField] = Registers.Rflags & ~(returns ? Rflags.Nt : 0);
        for (Gpr register = Gpr.Rax; register <= Gpr.Rdi; register++)
            saved[FirstRegister + (int)register] = Registers[register];
        for (SegmentName name = SegmentName.Es; name <= SegmentName.Gs; name++)
            saved[FirstSegment + (int)name] = Selector(name);
        for (int n = 0; n < SegmentsEnd(in task); n++)
            if (!ReadLinear(FieldAddress(in task, n), task.FieldSize, Rights.System, out state[n]))
                return false;
        // A task of virtual-8086 mode is not entered.
        if ((state[FlagsField] & Rflags.Vm) != 0)
            return Unsupported();
        for (int n = 0; n < SegmentsEnd(in old); n++)
            if (!WriteLinear(FieldAddress(in old, n), old.FieldSize, saved[n], Rights.System))
                return false;
        if (!ReadLinear(FieldAddress(in task, SegmentsEnd(in task)), 2, Rights.System, out ulong local)
            || !ReadLinear(task.Base + Cr3Offset, 4, Rights.System, out ulong tables)
            || nests && !WriteLinear(task.Base, 2, old.Selector, Rights.System)
            || !nests && !(ReadLinear(oldAccess, 1, Rights.System, out access)
                && WriteLinear(oldAccess, 1, access & ~(ulong)SystemType.Busy, Rights.System))
            || !Mark(ref task, next.Address, SystemType.Busy))
            return false;
        task.Selector = (ushort)selector;
        _machine.SetSegment(SegmentName.Tr, task);
        if (task.FieldSize == 4 && (_machine.Cr0 & Cr0.Pg) != 0)
            _machine.TryWriteControl(3, tables);
        _machine.TryWriteControl(0, _machine.Cr0 | Cr0.Ts);
        for (Gpr register = Gpr.Rax; register <= Gpr.Rdi; register++)
            SetFull(register, task.FieldSize, state[FirstRegister + (int)register]);
        Registers.Rflags = state[FlagsField] & LoadedFlags | Rflags.Fixed | (nests ? Rflags.Nt : 0);
        Registers.Rip = _next = state[0];
        Result.TaskSwitched = true;
        return LoadSegments(in state, local) && (!raised.HasErrorCode || Push(task.FieldSize, raised.ErrorCode));
    }

    /// <summary>
    /// A switch that hardware hands over; the old task is to go on at <paramref name="next"/>. At RIP itself, if it was
    /// an event from outside of the program; an exception's error code goes to the new task.
    /// </summary>
    public void SwitchTask(ulong selector, TaskSwitchCause cause, ulong next, in Fault raised)
    {
        SetMode();
        _external = next == Registers.Rip ? 1u : 0;
        _next = next;
        SwitchTask(selector, cause, in raised);
    }

    /// <summary>Faults are the new task's (SDM vol. 3, 8.3, steps 12 and 13).</summary>
    private bool LoadSegments(in InlineArray16<ulong> state, ulong local)
    {
        int level = (int)state[FirstSegment + (int)SegmentName.Cs] & 3;
        _virtual8086 = false;
        _refusal = Fault.InvalidTss;
        // Until it is checked a segment cannot be used.
        for (SegmentName name = SegmentName.Es; name <= SegmentName.Gs; name++)
            _machine.SetSegment(name, new() { Selector = (ushort)state[FirstSegment + (int)name] });
        _machine.SetSegment(SegmentName.Ldtr, new() { Selector = (ushort)local });
        _machine.Cpl = level;
        if (!LoadSegment(SegmentName.Ldtr, local, level))
            return false;
        for (SegmentName name = SegmentName.Es; name <= SegmentName.Gs; name++)
        {
            ulong selector = state[FirstSegment + (int)name];
            if (!(name == SegmentName.Cs
                ? ReadSegment(name, selector, level, out Segment code) && Enter(code, _next, level)
                : LoadSegment(name, selector, level)))
                return false;
        }
        return true;
    }
}
