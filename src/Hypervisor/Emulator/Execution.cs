// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>
/// One instruction on its way. Each instruction's method returns true when it is complete; false means that
/// <see cref="Result"/> tells why not (or that it shall simply be run again). Order within a method: all accesses that
/// can fail, then registers.
/// </summary>
internal ref partial struct Execution<TMachine> where TMachine : struct, IMachine, allows ref struct
{
    private TMachine _machine;
    private readonly ref FetchedInstruction _fetched;
    private readonly ref Instruction _i;
    private CodeSize _code;
    private bool _protected, _virtual8086;
    /// <summary>RIP after this instruction; branches change it.</summary>
    private ulong _next;
    /// <summary>What was in the memory operand.</summary>
    private ulong _loaded;
    /// <summary>Added to the memory operand's address: a bit string's element.</summary>
    private ulong _beyond;
    /// <summary>What a bad selector raises: #GP; #TS while a task or the stack of an inner level is loaded.</summary>
    private byte _refusal;
    /// <summary>Bit 0 of error codes: the event came from outside of the program.</summary>
    private uint _external;
    public Emulation Result;

    [MethodImpl(AggressiveInlining)] public Execution(TMachine machine)
    {
        _machine = machine;
        _fetched = ref machine.Fetched;
        _i = ref _fetched.Decoded;
    }

    private readonly bool Long64 => _code == CodeSize.Bits64;
    private ref GuestRegisters Registers => ref _machine.Registers;

    /// <summary>
    /// Emulates the instruction at CS:RIP. All that it reads and changes is behind the machine, and registers, flags
    /// and RIP change only when the instruction (or a batch of a REP instruction) is complete.
    /// </summary>
    public void Run()
    {
        ref GuestRegisters registers = ref Registers;
        ulong flags = registers.Rflags;
        SetMode();
        if (!_machine.Resumes && !Fetch())
            return;
        _code = _fetched.Code;
        ulong next = registers.Rip + _i.Length;
        _next = Long64 ? next : (uint)next;
        if (!Legal() || !Execute())
            return;
        registers.Rip = _next;
        if (_i.Operation != Op.Iret)
            registers.Rflags &= ~Rflags.Rf;
        // A debug trap after a load of SS waits for the end of the next instruction; an interrupt has cleared TF.
        Result.SingleStep = (flags & Rflags.Tf) != 0 && Result.Shadow != Shadow.MovSs
            && _i.Operation is not (>= Op.Int and <= Op.Int1);
        _machine.Retire();
    }

    private void SetMode()
    {
        _protected = (_machine.Cr0 & Cr0.Pe) != 0;
        _virtual8086 = _protected && (Registers.Rflags & Rflags.Vm) != 0;
        _refusal = Fault.GeneralProtection;
    }

    private CodeSize SizeOf(in Segment code) => code.Long && IsLongMode ? CodeSize.Bits64
        : code.Big ? CodeSize.Bits32 : CodeSize.Bits16;

    /// <summary>Reads and decodes. Goes into the next page only when the instruction does.</summary>
    [MethodImpl(AggressiveInlining)] private bool Fetch()
    {
        Segment cs = _machine.GetSegment(SegmentName.Cs);
        CodeSize code = SizeOf(in cs);
        bool long64 = code == CodeSize.Bits64;
        _fetched.ByteCount = 0;
        _fetched.IsLocated = false;
        ulong rip = long64 ? Registers.Rip : (uint)Registers.Rip;
        ulong limit = long64 ? ulong.MaxValue : cs.Limit;
        if (rip > limit || long64 && !Canonical(rip))
            return Raise(Fault.GeneralProtection);
        int allowed = (int)Math.Min(limit - rip, InstructionBytes.Limit - 1) + 1;
        ulong linear = long64 ? rip : (uint)(cs.Base + rip);

        Decoding decoding = Decoding.Incomplete;
        int start = 0, end = Math.Min(allowed, Page.Size - (int)new Gva(linear).Offset);
        for (; decoding == Decoding.Incomplete && start < allowed; end = allowed)
        {
            ulong from = linear + (uint)start;
            Span<byte> bytes = _fetched.Bytes;
            if (!Check(_machine.Fetch(new Gva(long64 ? from : (uint)from), bytes[start..end], ref Result.Fault)))
                return false;
            start = end;
            _fetched.ByteCount = (byte)end;
            decoding = _fetched.Decode(code);
        }
        return decoding == Decoding.Done || (decoding == Decoding.Unknown ? Unsupported()
            : Raise(decoding == Decoding.Invalid ? Fault.InvalidOpcode : Fault.GeneralProtection));
    }

    /// <summary>Conditions that the opcode row states.</summary>
    [MethodImpl(AggressiveInlining)] private bool Legal()
    {
        ref readonly Instruction i = ref _i;
        // LOCK MOV CR0 is MOV CR8.
        bool lockable = (i.Row & Op.Locks) != 0 && i.IsMemory && i.Destination == Op.RmOperand
            || i.Operation is Op.MovFromControl or Op.MovToControl;
        if (i.Locked && !lockable || (i.Row & Op.Mem) != 0 && !i.IsMemory)
            return Raise(Fault.InvalidOpcode);
        return (i.Row & Op.Cpl0) == 0 || Supervisor();
    }

    [MethodImpl(AggressiveInlining)] private bool Execute()
    {
        Op operation = _i.Operation;
        switch (operation)
        {
            case (>= Op.Add and <= Op.Neg) or (>= Op.Rol and <= Op.Btc): return Modify(operation);
            case Op.Mul or Op.Imul or Op.Div or Op.Idiv: return WideArithmetic(operation);
            case Op.ImulTwo or Op.ImulThree: return Product(operation);
            case Op.Bsf or Op.Bsr or Op.Popcnt: return Count(operation);
            case Op.Mov or Op.Movbe: return Move(operation);
            case >= Op.MovzxByte and <= Op.Movsxd: return MoveExtended(operation);
            case Op.Xchg or Op.Xadd: return Exchange(operation);
            case Op.Cmpxchg: return CompareExchange();
            case Op.Cmpxchg8b: return CompareExchangeWide();
            case Op.Cmov or Op.Set: return Conditional(operation);
            case >= Op.MovVector and <= Op.MovLow: return MoveVector(operation);
            case Op.Fpu: return Fpu();
            case >= Op.Lea and <= Op.Fence: return Miscellaneous(operation);
            case >= Op.Movs and <= Op.Outs: return Repeat(operation);
            case Op.In or Op.Out: return Port(operation);
            case >= Op.Push and <= Op.Int1: return StackOrBranch(operation);
            case >= Op.Clc and <= Op.Hlt: return Flags(operation);
            default: return System(operation);
        }
    }

    private bool Raise(byte vector, uint errorCode = 0)
    {
        Result.Fault.Vector = vector;
        Result.Fault.ErrorCode = errorCode;
        return Stop(Access.Fault);
    }

    private bool Unsupported() => Stop(Access.Unsupported);

    /// <summary>True when the access is done; else the instruction ends as the access did.</summary>
    [MethodImpl(AggressiveInlining)] private bool Check(Access access) => access == Access.Done || Stop(access);

    [MethodImpl(MethodImplOptions.NoInlining)] private bool Stop(Access access)
    {
        Result.Outcome = access;
        return false;
    }

    private bool Canonical(ulong address) => Cr4.IsCanonical(_machine.Cr4, address);
}
