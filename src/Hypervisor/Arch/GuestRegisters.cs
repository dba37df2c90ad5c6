// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>General purpose registers in the order of their encoding (SDM vol. 2, 3.1.1.1).</summary>
internal enum Gpr : byte
{
    Rax, Rcx, Rdx, Rbx, Rsp, Rbp, Rsi, Rdi, R8, R9, R10, R11, R12, R13, R14, R15,
}

/// <summary>
/// The sixteen general registers, RIP and RFLAGS of a vCPU. The world switch addresses this block by offset: register
/// n stands at byte 8n, RIP at 128, RFLAGS at 136.
/// </summary>
internal struct GuestRegisters
{
    private InlineArray16<ulong> _general;
    public ulong Rip;
    public ulong Rflags;

    [UnscopedRef] public ref ulong this[Gpr register]
    {
        [MethodImpl(AggressiveInlining)] get => ref _general[(int)register & 15];
    }

    /// <summary>EDX:EAX, by which MSRs and XCR0 are written.</summary>
    public ulong RdxRax => this[Gpr.Rdx] << 32 | (uint)this[Gpr.Rax];
}

/// <summary>RFLAGS bits (SDM vol. 1, 3.4.3).</summary>
internal static class Rflags
{
    public const ulong Cf = 1 << 0, Fixed = 1 << 1, Pf = 1 << 2, Af = 1 << 4, Zf = 1 << 6, Sf = 1 << 7, Tf = 1 << 8,
        If = 1 << 9, Df = 1 << 10, Of = 1 << 11, Iopl = 3 << 12, Nt = 1 << 14, Rf = 1 << 16, Vm = 1 << 17,
        Ac = 1 << 18, Vif = 1 << 19, Vip = 1 << 20, Id = 1 << 21;
}
