// SPDX-License-Identifier: GPL-2.0-only
using static SharpKvm.Emulator.Op;

namespace SharpKvm.Emulator;

/// <summary>The opcode maps (SDM vol. 2, appendix A), each line begins with its first opcode.</summary>
internal static class OpcodeMap
{
    private const Op None = Unknown;

    private const Op Immediate = Group | (Op)0, Pop8F = Group | (Op)1, Shift = Group | (Op)2, Unary = Group | (Op)3,
        UnaryZ = Group | (Op)4, IncDec = Group | (Op)5, Indirect = Group | (Op)6, Tables = Group | (Op)7,
        BitTest = Group | (Op)8, Wide = Group | (Op)9, MovImmediate = Group | (Op)10, Fences = Group | (Op)11,
        Systems = Group | (Op)12, FpuD9 = Group | (Op)13, FpuDb = Group | (Op)14, FpuDf = Group | (Op)15;

    /// <summary>Rows that ModRM.reg selects; they are combined with the row of the opcode.</summary>
    public static ReadOnlySpan<Op> Groups =>
    [
        /* Immediate */ Add | Locks, Or | Locks, Adc | Locks, Sbb | Locks, And | Locks, Sub | Locks, Xor | Locks, Cmp,
        /* Pop8F */ Pop, None, None, None, None, None, None, None,
        /* Shift */ Rol, Ror, Rcl, Rcr, Shl, Shr, Shl, Sar,
        /* Unary */ Test | FromI | Ib, Test | FromI | Ib, Not | Locks, Neg | Locks, Mul, Imul, Div, Idiv,
        /* UnaryZ */ Test | FromI | Iz, Test | FromI | Iz, Not | Locks, Neg | Locks, Mul, Imul, Div, Idiv,
        /* IncDec */ Inc | Locks, Dec | Locks, Ud, Ud, Ud, Ud, Ud, Ud,
        /* Indirect */
        Inc | v | Locks, Dec | v | Locks, Call | f, CallFar | v | Mem, Jmp | f, JmpFar | v | Mem, Push | s, Ud,
        /* Tables */ Sgdt, Sidt, Lgdt, Lidt, Smsw | v, None, Lmsw | w, Invlpg,
        /* BitTest */ Ud, Ud, Ud, Ud, Bt, Bts | Locks, Btr | Locks, Btc | Locks,
        /* Wide */ None, Cmpxchg8b | Locks | Mem, None, None, None, None, None, None,
        /* MovImmediate */ Mov, None, None, None, None, None, None, None,
        /* Fences */ None, None, None, None, None, Fence, Fence, Fence,
        /* Systems */ None, None, Lldt | w, Ltr | w, None, None, None, None,
        /* FpuD9, DD */ None, None, None, None, None, None, None, Fpu | w,
        /* FpuDB */ None, None, None, None, Fpu | w, None, None, None,
        /* FpuDF */ None, None, None, None, Fpu | w, None, None, None,
    ];

    public static ReadOnlySpan<Op> OneByte =>
    [
        /* 00 */ Add | EG | b | Locks, Add | EG | v | Locks, Add | GE | b, Add | GE | v,
        /* 04 */ Add | AI | b | Ib, Add | AI | v | Iz, PushSeg | s | No64, PopSeg | s | No64,
        /* 08 */ Or | EG | b | Locks, Or | EG | v | Locks, Or | GE | b, Or | GE | v,
        /* 0C */ Or | AI | b | Ib, Or | AI | v | Iz, PushSeg | s | No64, None,
        /* 10 */ Adc | EG | b | Locks, Adc | EG | v | Locks, Adc | GE | b, Adc | GE | v,
        /* 14 */ Adc | AI | b | Ib, Adc | AI | v | Iz, PushSeg | s | No64, PopSeg | s | No64,
        /* 18 */ Sbb | EG | b | Locks, Sbb | EG | v | Locks, Sbb | GE | b, Sbb | GE | v,
        /* 1C */ Sbb | AI | b | Ib, Sbb | AI | v | Iz, PushSeg | s | No64, PopSeg | s | No64,
        /* 20 */ And | EG | b | Locks, And | EG | v | Locks, And | GE | b, And | GE | v,
        /* 24 */ And | AI | b | Ib, And | AI | v | Iz, None, None,
        /* 28 */ Sub | EG | b | Locks, Sub | EG | v | Locks, Sub | GE | b, Sub | GE | v,
        /* 2C */ Sub | AI | b | Ib, Sub | AI | v | Iz, None, None,
        /* 30 */ Xor | EG | b | Locks, Xor | EG | v | Locks, Xor | GE | b, Xor | GE | v,
        /* 34 */ Xor | AI | b | Ib, Xor | AI | v | Iz, None, None,
        /* 38 */ Cmp | EG | b, Cmp | EG | v, Cmp | GE | b, Cmp | GE | v,
        /* 3C */ Cmp | AI | b | Ib, Cmp | AI | v | Iz, None, None,
        /* 40 */ Inc | R | v, Inc | R | v, Inc | R | v, Inc | R | v, Inc | R | v, Inc | R | v, Inc | R | v, Inc | R | v,
        /* 48 */ Dec | R | v, Dec | R | v, Dec | R | v, Dec | R | v, Dec | R | v, Dec | R | v, Dec | R | v, Dec | R | v,
        /* 50 */ Push | R | s, Push | R | s, Push | R | s, Push | R | s,
        /* 54 */ Push | R | s, Push | R | s, Push | R | s, Push | R | s,
        /* 58 */ Pop | R | s, Pop | R | s, Pop | R | s, Pop | R | s, Pop | R | s, Pop | R | s, Pop | R | s, Pop | R | s,
        /* 60 */ Pusha | v | No64, Popa | v | No64, None, Movsxd | GE | v | Only64,
        /* 64 */ None, None, None, None,
        /* 68 */ Push | I | s | Iz, ImulThree | GE | v | Iz, Push | I | s | Ib, ImulThree | GE | v | Ib,
        /* 6C */ Ins | b, Ins | z, Outs | b, Outs | z,
        /* 70 */ Jcc | I | f | Ib, Jcc | I | f | Ib, Jcc | I | f | Ib, Jcc | I | f | Ib,
        /* 74 */ Jcc | I | f | Ib, Jcc | I | f | Ib, Jcc | I | f | Ib, Jcc | I | f | Ib,
        /* 78 */ Jcc | I | f | Ib, Jcc | I | f | Ib, Jcc | I | f | Ib, Jcc | I | f | Ib,
        /* 7C */ Jcc | I | f | Ib, Jcc | I | f | Ib, Jcc | I | f | Ib, Jcc | I | f | Ib,
        /* 80 */ Immediate | EI | b | Ib, Immediate | EI | v | Iz,
        /* 82 */ Immediate | EI | b | Ib | No64, Immediate | EI | v | Ib,
        /* 84 */ Test | EG | b, Test | EG | v, Xchg | EG | b | Locks, Xchg | EG | v | Locks,
        /* 88 */ Mov | EG | b, Mov | EG | v, Mov | GE | b, Mov | GE | v,
        /* 8C */ MovFromSeg | EG | v, Lea | GE | v | Mem, MovToSeg | GE | w, Pop8F | E | s,
        /* 90 */ Xchg | AR | v, Xchg | AR | v, Xchg | AR | v, Xchg | AR | v,
        /* 94 */ Xchg | AR | v, Xchg | AR | v, Xchg | AR | v, Xchg | AR | v,
        /* 98 */ Cbw | v, Cwd | v, CallFar | v | Ap | No64, None,
        /* 9C */ Pushf | s, Popf | s, Sahf, Lahf,
        /* A0 */ Mov | AO | b, Mov | AO | v, Mov | OA | b, Mov | OA | v,
        /* A4 */ Movs | b, Movs | v, Cmps | b, Cmps | v,
        /* A8 */ Test | AI | b | Ib, Test | AI | v | Iz, Stos | b, Stos | v,
        /* AC */ Lods | b, Lods | v, Scas | b, Scas | v,
        /* B0 */ Mov | RI | b | Ib, Mov | RI | b | Ib, Mov | RI | b | Ib, Mov | RI | b | Ib,
        /* B4 */ Mov | RI | b | Ib, Mov | RI | b | Ib, Mov | RI | b | Ib, Mov | RI | b | Ib,
        /* B8 */ Mov | RI | v | Iv, Mov | RI | v | Iv, Mov | RI | v | Iv, Mov | RI | v | Iv,
        /* BC */ Mov | RI | v | Iv, Mov | RI | v | Iv, Mov | RI | v | Iv, Mov | RI | v | Iv,
        /* C0 */ Shift | EI | b | Ib, Shift | EI | v | Ib, Ret | f | Iw, Ret | f,
        /* C4 */ LoadFar | GE | v | No64, LoadFar | GE | v | No64,
        /* C6 */ MovImmediate | EI | b | Ib, MovImmediate | EI | v | Iz,
        /* C8 */ Enter | s | Iwb, Leave | s, RetFar | v | Iw, RetFar | v,
        /* CC */ Int3 | v, Int | v | Ib, Into | v | No64, Iret | v,
        /* D0 */ Shift | E1 | b, Shift | E1 | v, Shift | EC | b, Shift | EC | v,
        /* D4 */ None, None, None, Xlat,
        /* D8 */ None, FpuD9 | E, None, FpuDb | E, None, FpuD9 | E, None, FpuDf | E,
        /* E0 */ Loopne | I | f | Ib, Loope | I | f | Ib, Loop | I | f | Ib, Jcxz | I | f | Ib,
        /* E4 */ In | b | Ib, In | z | Ib, Out | b | Ib, Out | z | Ib,
        /* E8 */ Call | I | f | Iz, Jmp | I | f | Iz, JmpFar | v | Ap | No64, Jmp | I | f | Ib,
        /* EC */ In | b, In | z, Out | b, Out | z,
        /* F0 */ None, Int1 | v, None, None,
        /* F4 */ Hlt | Cpl0, Cmc, Unary | E | b, UnaryZ | E | v,
        /* F8 */ Clc, Stc, Cli, Sti,
        /* FC */ Cld, Std, IncDec | E | b, Indirect | E,
    ];

    /// <summary>Opcodes after 0F.</summary>
    public static ReadOnlySpan<Op> TwoByte =>
    [
        /* 00 */ Systems | E, Tables | E, None, None,
        /* 04 */ Ud, None, Clts | Cpl0, None,
        /* 08 */ Wbinvd | Cpl0, Wbinvd | Cpl0, Ud, Ud,
        /* 0C */ Ud, Nop | E | b, None, None,
        /* 10 */ Prefixed | (Op)0, Prefixed | (Op)1, None, None, None, None, None, None,
        /* 18 */ Nop | E | b, Nop | E | v, None, None,
        /* 1C */ Nop | E | b, Nop | E | v, Nop | E | v, Nop | E | v,
        /* 20 */ MovFromControl | EG | n | Cpl0, MovFromDebug | EG | n | Cpl0,
        /* 22 */ MovToControl | GE | n | Cpl0, MovToDebug | GE | n | Cpl0,
        /* 24 */ None, None, None, None,
        /* 28 */ Prefixed | (Op)2, Prefixed | (Op)3, None, Prefixed | (Op)4, None, None, None, None,
        /* 30 */ Wrmsr | Cpl0, Rdtsc, Rdmsr | Cpl0, None,
        /* 34 */ None, None, None, None, None, None, None, None, None, None, None, None,
        /* 40 */ Cmov | GE | v, Cmov | GE | v, Cmov | GE | v, Cmov | GE | v,
        /* 44 */ Cmov | GE | v, Cmov | GE | v, Cmov | GE | v, Cmov | GE | v,
        /* 48 */ Cmov | GE | v, Cmov | GE | v, Cmov | GE | v, Cmov | GE | v,
        /* 4C */ Cmov | GE | v, Cmov | GE | v, Cmov | GE | v, Cmov | GE | v,
        /* 50 */ None, None, None, None, None, None, None, None, None, None, None, None, None, None, None, None,
        /* 60 */ None, None, None, None, None, None, None, None, None, None, None, None, None, None,
        /* 6E */ Prefixed | (Op)5, Prefixed | (Op)6,
        /* 70 */ None, None, None, None, None, None, None, None, None, None, None, None, None, None,
        /* 7E */ Prefixed | (Op)7, Prefixed | (Op)8,
        /* 80 */ Jcc | I | f | Iz, Jcc | I | f | Iz, Jcc | I | f | Iz, Jcc | I | f | Iz,
        /* 84 */ Jcc | I | f | Iz, Jcc | I | f | Iz, Jcc | I | f | Iz, Jcc | I | f | Iz,
        /* 88 */ Jcc | I | f | Iz, Jcc | I | f | Iz, Jcc | I | f | Iz, Jcc | I | f | Iz,
        /* 8C */ Jcc | I | f | Iz, Jcc | I | f | Iz, Jcc | I | f | Iz, Jcc | I | f | Iz,
        /* 90 */ Set | E | b, Set | E | b, Set | E | b, Set | E | b, Set | E | b, Set | E | b, Set | E | b, Set | E | b,
        /* 98 */ Set | E | b, Set | E | b, Set | E | b, Set | E | b, Set | E | b, Set | E | b, Set | E | b, Set | E | b,
        /* A0 */ PushSeg | s, PopSeg | s, Cpuid, Bt | EG | v,
        /* A4 */ Shld | EG | v | Ib, Shld | EG | v, None, None,
        /* A8 */ PushSeg | s, PopSeg | s, None, Bts | EG | v | Locks,
        /* AC */ Shrd | EG | v | Ib, Shrd | EG | v, Fences | E | b, ImulTwo | GE | v,
        /* B0 */ Cmpxchg | EG | b | Locks, Cmpxchg | EG | v | Locks, LoadFar | GE | v | Mem, Btr | EG | v | Locks,
        /* B4 */ LoadFar | GE | v | Mem, LoadFar | GE | v | Mem, MovzxByte | GE | v, MovzxWord | GE | v,
        /* B8 */ Prefixed | (Op)12, Ud | GE, BitTest | EI | v | Ib, Btc | EG | v | Locks,
        /* BC */ Bsf | GE | v, Bsr | GE | v, MovsxByte | GE | v, MovsxWord | GE | v,
        /* C0 */ Xadd | EG | b | Locks, Xadd | EG | v | Locks, None, Prefixed | (Op)13,
        /* C4 */ None, None, None, Wide | E | y,
        /* C8 */ Bswap | R | v, Bswap | R | v, Bswap | R | v, Bswap | R | v,
        /* CC */ Bswap | R | v, Bswap | R | v, Bswap | R | v, Bswap | R | v,
        /* D0 */ None, None, None, None, None, None, Prefixed | (Op)9, None,
        /* D8 */ None, None, None, None, None, None, None, None,
        /* E0 */ None, None, None, None, None, None, None, Prefixed | (Op)10,
        /* E8 */ None, None, None, None, None, None, None, None,
        /* F0 */ Prefixed | (Op)11, None, None, None, None, None, None, None,
        /* F8 */ None, None, None, None, None, None, None, Ud | GE,
    ];

    /// <summary>Rows of opcodes after 0F that the prefix selects: none, 66, F3, F2.</summary>
    public static ReadOnlySpan<Op> ByPrefix =>
    [
        /* 10 */ MovVector | GE, MovVector | GE, MovDword | GE, MovQword | GE,
        /* 11 */ MovVector | EG, MovVector | EG, MovDword | EG, MovQword | EG,
        /* 28 */ MovAligned | GE, MovAligned | GE, None, None,
        /* 29 */ MovAligned | EG, MovAligned | EG, None, None,
        /* 2B */ MovAligned | EG, MovAligned | EG, None, None,
        /* 6E */ None, MovLow | GE | y, None, None,
        /* 6F */ None, MovAligned | GE, MovVector | GE, None,
        /* 7E */ None, MovLow | EG | y, MovQword | GE, None,
        /* 7F */ None, MovAligned | EG, MovVector | EG, None,
        /* D6 */ None, MovQword | EG, None, None,
        /* E7 */ None, MovAligned | EG, None, None,
        /* F0 */ None, None, None, MovVector | GE,
        /* B8 */ None, None, Popcnt | GE | v, None,
        /* C3 */ Mov | EG | y | Mem, Ud | EG, Ud | EG, Ud | EG,
    ];

    /// <summary>The row of an opcode. <paramref name="i"/> has its map and its prefixes.</summary>
    public static Op Row(in Instruction i, byte opcode)
    {
        // Of the third map, F2 makes it CRC32.
        bool moves = (opcode & 0xfe) == 0xf0 && i.Repeat == 0;
        Op row = i.Map == 0 ? OneByte[opcode] : i.Map == 1 ? TwoByte[opcode]
            : moves ? Movbe | v | Mem | (opcode == 0xf0 ? GE : EG) : None;
        int prefix = i.Repeat != 0 ? i.Repeat == 0xf3 ? 2 : 3 : i.OperandPrefix ? 1 : 0;
        return (row & Prefixed) == 0 ? row : ByPrefix[(int)(row & OperationMask) * 4 + prefix];
    }
}
