// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>
/// A set of what an operation reads or leaves: bits 0 to 15 the general registers in hardware order, 16 to 31 the xmm
/// registers, from 32 on the status flags.
/// </summary>
internal static class Place
{
    public const ulong AllGeneral = 0xffff;
    public const ulong AllFlags = ~0xffff_ffffUL;

    /// <summary>rax, rcx, rdx, rsi, rdi, r8 to r11.</summary>
    public const ulong CallerSaved = 0x0fc7;

    /// <summary>rbx, rsp, rbp, r12 to r15.</summary>
    public const ulong CalleeSaved = 0xf038;

    public const ulong Arguments = 0x03c6;

    public const ulong AllVector = 0xffff_0000;

    public static ulong Of(Register register)
    {
        Register full = register.GetFullRegister();
        return full switch
        {
            >= Register.RAX and <= Register.R15 => 1UL << (full - Register.RAX),
            >= Register.ZMM0 and <= Register.ZMM15 => 1UL << (16 + (full - Register.ZMM0)),
            _ => 0,
        };
    }

    public static ulong OfFlags(RflagsBits flags) => (ulong)flags << 32;
}
