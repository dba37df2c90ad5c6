// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>The instruction emulator's entry.</summary>
internal static class Emulator
{
    /// <summary>
    /// Emulates the instruction at CS:RIP. Pure: all that it reads and changes is behind <paramref name="machine"/>,
    /// and registers, flags and RIP change only when the instruction (or a batch of a REP instruction) is complete.
    /// </summary>
    public static Emulation Run<TMachine>(ref TMachine machine)
        where TMachine : struct, IMachine, allows ref struct
    {
        Execution<TMachine> execution = new(machine);
        execution.Run();
        return execution.Result;
    }
}
