// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>
/// A row of the opcode maps: operation (bits 0-7), destination and source operand (8-15), operand size (16-18),
/// immediate (19-21), conditions (22 and up). Rows are written as `Add | EG | v | Locks`. The letters are those of the
/// manual's opcode maps (SDM vol. 2, A.2.1): E = register or memory by ModRM, G = register by ModRM.reg, A =
/// accumulator, R = register in the opcode, I = immediate, O = memory offset, S = segment register.
/// </summary>
internal enum Op : uint
{
    // Operations. Zero: a hole in the map, an instruction that is not emulated.
    Unknown, Ud,
    Add, Or, Adc, Sbb, And, Sub, Xor, Cmp, Test,
    Inc, Dec, Not, Neg, Mul, Imul, ImulTwo, ImulThree, Div, Idiv,
    Rol, Ror, Rcl, Rcr, Shl, Shr, Sar, Shld, Shrd,
    Bt, Bts, Btr, Btc, Bsf, Bsr, Popcnt,
    Mov, Movbe, MovzxByte, MovzxWord, MovsxByte, MovsxWord, Movsxd, Xchg, Cmpxchg, Cmpxchg8b, Xadd, Cmov, Set,
    MovVector, MovAligned, MovDword, MovQword, MovLow,
    Lea, Xlat, Bswap, Cbw, Cwd, Lahf, Sahf, Nop, Fence, Fpu,
    Movs, Cmps, Stos, Lods, Scas, Ins, Outs, In, Out,
    Push, Pop, PushSeg, PopSeg, Pusha, Popa, Pushf, Popf, Enter, Leave,
    Call, Jmp, Ret, Jcc, Loopne, Loope, Loop, Jcxz, CallFar, JmpFar, RetFar, Iret,
    Int, Int3, Into, Int1,
    Clc, Stc, Cmc, Cld, Std, Cli, Sti, Hlt,
    MovFromSeg, MovToSeg, LoadFar, Lldt, Ltr, Sgdt, Sidt, Lgdt, Lidt, Smsw, Lmsw, Clts, Invlpg, Wbinvd,
    MovFromControl, MovToControl, MovFromDebug, MovToDebug, Rdmsr, Wrmsr, Rdtsc, Cpuid,
    OperationMask = 0xff,

    // Operands.
    RmOperand = 1, RegOperand, AccOperand, OpcodeOperand, ImmOperand, OffsetOperand, OneOperand, ClOperand,
    DestinationShift = 8, SourceShift = 12, OperandMask = 0xf,
    E = RmOperand << 8, R = OpcodeOperand << 8, I = ImmOperand << 8,
    EG = E | RegOperand << 12, GE = RegOperand << 8 | RmOperand << 12,
    EI = E | ImmOperand << 12, E1 = E | OneOperand << 12, EC = E | ClOperand << 12, FromI = ImmOperand << 12,
    AI = AccOperand << 8 | ImmOperand << 12, AR = AccOperand << 8 | OpcodeOperand << 12, RI = R | ImmOperand << 12,
    AO = AccOperand << 8 | OffsetOperand << 12, OA = OffsetOperand << 8 | AccOperand << 12,

    // Operand size: byte; by prefix 2, 4 or 8; word; 4 or 8; stack operation (8 or 2 in 64-bit code); native word of
    // the mode; 2 or 4; near branch (always 8 in 64-bit code, as Intel has it).
    b = 0, v = 1 << 16, w = 2 << 16, y = 3 << 16, s = 4 << 16, n = 5 << 16, z = 6 << 16, f = 7 << 16,
    SizeMask = 7 << 16,

    // Immediate: sign-extended byte; 2 or 4 bytes by operand size; full; word; word and byte; far pointer.
    Ib = 1 << 19, Iz = 2 << 19, Iv = 3 << 19, Iw = 4 << 19, Iwb = 5 << 19, Ap = 6 << 19, ImmediateMask = 7 << 19,

    // Conditions: LOCK may stand before it; not in 64-bit code; memory only; CPL 0 only; ModRM.reg selects the row of a
    // group whose number stands in place of the operation.
    Locks = 1 << 22, No64 = 1 << 23, Mem = 1 << 24, Cpl0 = 1 << 25, Group = 1 << 26, Only64 = 1 << 27,

    // The prefix selects the row, of a group whose number stands in place of the operation.
    Prefixed = 1 << 28,
}
