// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Host;

namespace SharpKvm.Emulator;

/// <summary>
/// One instruction on its way. Each instruction's method returns true when it is complete; false means that
/// <see cref="Result"/> tells why not (or that it shall simply be run again). Order within a method: all accesses that
/// can fail, then registers.
/// </summary>
internal ref partial struct Execution<TMachine>
    where TMachine : struct, IMachine, allows ref struct
{
    private TMachine _machine;
    private readonly ref FetchedInstruction _fetched;
    private readonly ref Instruction _i;
    private CodeSize _code;
    private bool _protected;
    private bool _virtual8086;
    /// <summary>RIP after this instruction; branches change it.</summary>
    private ulong _next;
    /// <summary>What was in the memory operand.</summary>
    private ulong _loaded;
    /// <summary>Added to the memory operand's address: a bit string's element, the increment of RSP by POP.</summary>
    private ulong _beyond;
    public Emulation Result;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Execution(TMachine machine)
    {
        _machine = machine;
        _fetched = ref machine.Fetched;
        _i = ref _fetched.Decoded;
    }

    private readonly bool Long64 => _code == CodeSize.Bits64;
    private ref GuestRegisters Registers => ref _machine.Registers;

    public void Run()
    {
        ulong flags = Registers.Rflags;
        _protected = (_machine.Cr0 & Cr0.Pe) != 0;
        _virtual8086 = _protected && (flags & Rflags.Vm) != 0;
        if (!_machine.Resumes && !Fetch())
            return;
        _code = _fetched.Code;
        _next = Registers.Rip + _i.Length;
        _next = Long64 ? _next : (uint)_next;
        _machine.Decoded(_i.IsMemory && _i.Operation < Op.Lea);
        if (!Legal() || !Execute())
            return;
        Registers.Rip = _next;
        Registers.Rflags &= ~Rflags.Rf;
        // A debug trap after a load of SS waits for the end of the next instruction.
        Result.SingleStep = (flags & Rflags.Tf) != 0 && Result.Shadow != Shadow.MovSs;
        _machine.Retire();
    }

    /// <summary>Reads and decodes. Goes into the next page only when the instruction does.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool Fetch()
    {
        Segment cs = _machine.GetSegment(SegmentName.Cs);
        _code = cs.Long && (_machine.Efer & Efer.Lma) != 0 ? CodeSize.Bits64
            : cs.Big ? CodeSize.Bits32 : CodeSize.Bits16;
        _fetched.Code = _code;
        ulong rip = Registers.Rip;
        ulong limit = Long64 ? ulong.MaxValue : cs.Limit;
        rip = Long64 ? rip : (uint)rip;
        _fetched.ByteCount = 0;
        _fetched.IsLocated = false;
        if (rip > limit || Long64 && !Canonical(rip))
            return Raise(Fault.GeneralProtection);
        ulong within = limit - rip;
        int allowed = within < InstructionBytes.Limit - 1 ? (int)within + 1 : InstructionBytes.Limit;
        ulong linear = Long64 ? rip : (uint)(cs.Base + rip);
        int inPage = Math.Min(allowed, Page.Size - (int)new Gva(linear).Offset);

        Decoding decoding = Decoding.Incomplete;
        int start = 0;
        for (int end = inPage; decoding == Decoding.Incomplete && start < allowed; end = allowed)
        {
            ulong from = linear + (uint)start;
            Span<byte> bytes = _fetched.Bytes;
            if (!Check(_machine.Fetch(new Gva(Long64 ? from : (uint)from), bytes[start..end], ref Result.Fault)))
                return false;
            start = end;
            _fetched.ByteCount = (byte)end;
            decoding = Decoder.Decode(bytes[..end], _code, out _i);
        }
        return decoding switch
        {
            Decoding.Done => true,
            Decoding.Unknown => Unsupported(),
            _ => Raise(decoding == Decoding.Invalid ? Fault.InvalidOpcode : Fault.GeneralProtection),
        };
    }

    /// <summary>Conditions that the opcode row states.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool Legal()
    {
        bool lockable = (_i.Row & Op.Locks) != 0 && _i.IsMemory && _i.Destination == Op.RmOperand;
        bool controlEight = _i.Operation is Op.MovFromControl or Op.MovToControl;
        if (_i.Locked && !lockable && !controlEight || (_i.Row & Op.Mem) != 0 && !_i.IsMemory)
            return Raise(Fault.InvalidOpcode);
        return (_i.Row & Op.Cpl0) == 0 || _machine.Cpl == 0 || Raise(Fault.GeneralProtection);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool Execute()
    {
        Op operation = _i.Operation;
        switch (operation)
        {
            case (>= Op.Add and <= Op.Neg) or (>= Op.Rol and <= Op.Btc): return Modify(operation);
            case Op.Mul or Op.Imul or Op.Div or Op.Idiv: return WideArithmetic(operation);
            case Op.ImulTwo or Op.ImulThree: return Product(operation);
            case Op.Bsf or Op.Bsr or Op.Popcnt: return Count(operation);
            case Op.Mov or Op.Movbe or Op.Movnti: return Move(operation);
            case >= Op.MovzxByte and <= Op.Movsxd: return MoveExtended(operation);
            case Op.Xchg or Op.Xadd: return Exchange(operation);
            case Op.Cmpxchg: return CompareExchange();
            case Op.Cmpxchg8b: return CompareExchangeWide();
            case Op.Cmov or Op.Set: return Conditional(operation);
            case >= Op.Lea and <= Op.Fence: return Miscellaneous(operation);
            case >= Op.Movs and <= Op.Outs: return Repeat(operation);
            case Op.In or Op.Out: return Port(operation);
            case >= Op.Push and <= Op.Leave: return Stack(operation);
            case >= Op.Call and <= Op.Int3: return Branch(operation);
            case >= Op.Clc and <= Op.Hlt: return Flags(operation);
            default: return System(operation);
        }
    }

    private bool Raise(byte vector, uint errorCode = 0)
    {
        Result.Outcome = Outcome.Exception;
        Result.Fault.Vector = vector;
        Result.Fault.HasErrorCode = vector is >= Fault.InvalidTss and <= Fault.PageFault or Fault.AlignmentCheck;
        Result.Fault.ErrorCode = errorCode;
        return false;
    }

    private bool Unsupported()
    {
        Result.Outcome = Outcome.Unsupported;
        return false;
    }

    /// <summary>True when the access is done; else the instruction ends as the access did.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool Check(Access access) => access == Access.Done || Stop(access);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool Stop(Access access)
    {
        Result.Outcome = access == Access.Fault ? Outcome.Exception
            : access == Access.UserSpace ? Outcome.UserSpace : Outcome.Unsupported;
        return false;
    }

    private bool Canonical(ulong address) => Cr4.IsCanonical(_machine.Cr4, address);
}
