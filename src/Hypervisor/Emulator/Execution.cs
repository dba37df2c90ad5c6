// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using SharpKvm.Cpu;
using SharpKvm.Host;

namespace SharpKvm.Emulator;

/// <summary>Values that come from memory together, in its order: POPA's eight, CMPXCHG16B's two.</summary>
[InlineArray(8)]
internal struct Words
{
    private ulong _first;
}

/// <summary>
/// One instruction on its way. Each instruction's method returns true when it is complete; false means that
/// <see cref="Result"/> tells why not (or that it shall simply be run again). Order within a method: all accesses that
/// can fail, then registers.
/// </summary>
internal ref partial struct Execution<TMachine>
    where TMachine : struct, IMachine, allows ref struct
{
    private const ulong ProtectionEnable = 1, AlignmentMask = 1 << 18, LongModeActive = 1 << 10;
    private const ulong Cr4Vme = 1 << 0, Cr4Pvi = 1 << 1, Cr4Tsd = 1 << 2, Cr4Umip = 1 << 11, Cr4La57 = 1 << 12;

    private TMachine _machine;
    private Instruction _i;
    private CodeSize _code;
    private bool _protected;
    private bool _virtual8086;
    /// <summary>RIP after this instruction; branches change it.</summary>
    private ulong _next;
    /// <summary>Linear address of the memory operand once it was loaded, and what was there.</summary>
    private ulong _linear;
    private ulong _loaded;
    private bool _hasLinear;
    /// <summary>POP computes an address based on RSP after its increment (SDM vol. 2, POP).</summary>
    private ulong _popped;
    public Emulation Result;

    public Execution(TMachine machine) => _machine = machine;

    private readonly bool Long64 => _code == CodeSize.Bits64;
    private ref GuestRegisters Registers => ref _machine.Registers;

    public void Run()
    {
        Segment cs = _machine.GetSegment(SegmentName.Cs);
        ulong flags = Registers.Rflags;
        _protected = (_machine.Cr0 & ProtectionEnable) != 0;
        _virtual8086 = _protected && (flags & Rflags.Vm) != 0;
        _code = cs.Long && (_machine.Efer & LongModeActive) != 0 ? CodeSize.Bits64
            : cs.Big ? CodeSize.Bits32 : CodeSize.Bits16;
        if (!Fetch(cs))
            return;
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
    private bool Fetch(in Segment cs)
    {
        ulong rip = Registers.Rip;
        ulong limit = Long64 ? ulong.MaxValue : cs.Limit;
        rip = Long64 ? rip : (uint)rip;
        if (rip > limit || Long64 && !Canonical(rip))
            return Raise(Fault.GeneralProtection);
        ulong within = limit - rip;
        int allowed = within < InstructionBytes.Limit - 1 ? (int)within + 1 : InstructionBytes.Limit;
        ulong linear = Long64 ? rip : (uint)(cs.Base + rip);
        int inPage = Math.Min(allowed, Page.Size - (int)new Gva(linear).Offset);

        Decoding decoding = Decoding.Incomplete;
        for (int end = inPage; decoding == Decoding.Incomplete && Result.ByteCount < allowed; end = allowed)
        {
            ulong from = linear + Result.ByteCount;
            Span<byte> bytes = Result.Bytes;
            if (!Check(_machine.Fetch(new Gva(Long64 ? from : (uint)from), bytes[Result.ByteCount..end],
                ref Result.Fault)))
                return false;
            Result.ByteCount = (byte)end;
            decoding = Decoder.Decode(bytes[..end], _code, out _i);
        }
        if (decoding != Decoding.Done)
        {
            return decoding == Decoding.Unknown ? Unsupported()
                : Raise(decoding == Decoding.Invalid ? Fault.InvalidOpcode : Fault.GeneralProtection);
        }
        _next = rip + _i.Length;
        _next = Long64 ? _next : (uint)_next;
        return true;
    }

    /// <summary>Conditions that the opcode row states.</summary>
    private bool Legal()
    {
        bool lockable = (_i.Row & Op.Locks) != 0 && _i.IsMemory && _i.Destination == Op.RmOperand;
        bool controlEight = _i.Operation is Op.MovFromControl or Op.MovToControl;
        if (_i.Locked && !lockable && !controlEight || (_i.Row & Op.Mem) != 0 && !_i.IsMemory)
            return Raise(Fault.InvalidOpcode);
        return (_i.Row & Op.Cpl0) == 0 || _machine.Cpl == 0 || Raise(Fault.GeneralProtection);
    }

    private bool Execute()
    {
        Op operation = _i.Operation;
        switch (operation)
        {
            case >= Op.Add and <= Op.Test: return Binary(operation);
            case >= Op.Inc and <= Op.Neg: return Unary(operation);
            case Op.Mul or Op.Imul or Op.Div or Op.Idiv: return WideArithmetic(operation);
            case Op.ImulTwo or Op.ImulThree: return Product(operation);
            case >= Op.Rol and <= Op.Sar: return Shift(operation);
            case Op.Shld or Op.Shrd: return DoubleShift(operation);
            case >= Op.Bt and <= Op.Btc: return BitTest(operation);
            case Op.Bsf or Op.Bsr or Op.Popcnt: return Count(operation);
            case Op.Mov or Op.Movbe or Op.Movnti: return Move(operation);
            case >= Op.MovzxByte and <= Op.Movsxd: return MoveExtended(operation);
            case Op.Xchg or Op.Xadd: return Exchange(operation);
            case Op.Cmpxchg: return CompareExchange();
            case Op.Cmpxchg8b: return CompareExchangeWide();
            case Op.Cmov or Op.Set: return Conditional(operation);
            case >= Op.Lea and <= Op.Aad: return Miscellaneous(operation);
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
    private bool Check(Access access)
    {
        Result.Outcome = access switch
        {
            Access.Done => Outcome.Done,
            Access.Fault => Outcome.Exception,
            Access.UserSpace => Outcome.UserSpace,
            _ => Outcome.Unsupported,
        };
        return access == Access.Done;
    }

    private bool Canonical(ulong address)
    {
        int unused = (_machine.Cr4 & Cr4La57) != 0 ? 64 - 57 : 64 - 48;
        return (long)(address << unused) >> unused == (long)address;
    }
}
