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

/// <summary>What an operation reads and what it surely overwrites.</summary>
internal readonly record struct Effects(ulong Reads, ulong Writes)
{
    private static readonly InstructionInfoFactory Factory = new();

    public static Effects Of(Op op)
    {
        if (op.IsTrapCall)
        {
            return new(Place.Of(Register.RBP), 0);
        }

        ref readonly Instruction instruction = ref op.Instruction;
        switch (instruction.FlowControl)
        {
            case FlowControl.Call or FlowControl.IndirectCall:
                return new(
                    Place.Arguments | Place.Of(Register.RSP) | Place.Of(Register.RAX),
                    Place.CallerSaved | Place.AllVector | Place.AllFlags);
            case FlowControl.Return:
                return new(Place.CalleeSaved | Place.Of(Register.RAX) | Place.Of(Register.RDX), 0);
            case FlowControl.UnconditionalBranch when op is { Branch: null, Trap: null }:
                return new(Place.Arguments | Place.CalleeSaved, 0);
        }

        ulong reads = Place.OfFlags(instruction.RflagsRead);
        ulong writes = Place.OfFlags(instruction.RflagsModified);
        foreach (UsedRegister used in Factory.GetInfo(instruction).GetUsedRegisters())
        {
            ulong place = Place.Of(used.Register);
            bool isWhole = used.Register.IsGPR64() || used.Register.IsGPR32() || used.Register.IsVectorRegister();
            switch (used.Access)
            {
                case OpAccess.Write when isWhole:
                    writes |= place;
                    break;
                case OpAccess.ReadWrite or OpAccess.ReadCondWrite when isWhole:
                    reads |= place;
                    writes |= place;
                    break;
                case OpAccess.None or OpAccess.NoMemAccess:
                    break;
                default:
                    reads |= place;
                    break;
            }
        }

        return new(reads, writes);
    }

    /// <summary>All that an operation may change.</summary>
    public static ulong Changes(Op op)
    {
        if (op.Instruction.FlowControl is FlowControl.Call or FlowControl.IndirectCall)
        {
            return Place.CallerSaved | Place.AllVector | Place.AllFlags;
        }

        ulong changes = Place.OfFlags(op.Instruction.RflagsModified);
        foreach (UsedRegister used in Factory.GetInfo(op.Instruction).GetUsedRegisters())
        {
            if (used.Access is OpAccess.Write or OpAccess.ReadWrite or OpAccess.CondWrite or OpAccess.ReadCondWrite)
            {
                changes |= Place.Of(used.Register);
            }
        }

        return changes;
    }
}

/// <summary>Control flow and liveness of one method. Valid until the code changes.</summary>
internal sealed class Flow
{
    private readonly Method _method;
    private readonly ulong[] _liveIn;
    private readonly ulong[] _liveOut;

    public Flow(Method method)
    {
        _method = method;
        method.Renumber();
        int count = method.Code.Count;
        _liveIn = new ulong[count];
        _liveOut = new ulong[count];
        Effects[] effects = [.. method.Code.Select(Effects.Of)];
        bool isChanged = true;
        while (isChanged)
        {
            isChanged = false;
            for (int i = count - 1; i >= 0; i--)
            {
                ulong outgoing = 0;
                foreach (int next in Successors(i))
                {
                    outgoing |= _liveIn[next];
                }

                ulong incoming = effects[i].Reads | (outgoing & ~effects[i].Writes);
                isChanged |= incoming != _liveIn[i];
                _liveOut[i] = outgoing;
                _liveIn[i] = incoming;
            }
        }
    }

    public ulong LiveBefore(int index) => _liveIn[index];

    public ulong LiveAfter(int index) => _liveOut[index];

    public IEnumerable<int> Successors(int index) => Successors(_method, index);

    public static IEnumerable<int> Successors(Method method, int index)
    {
        Op op = method.Code[index];
        if (!op.EndsFlow && index + 1 < method.Code.Count)
        {
            yield return index + 1;
        }

        if (op.Branch is { } target)
        {
            yield return target.Index;
        }
    }

    /// <summary>Whether each operation is the target of a branch.</summary>
    public static bool[] Targets(Method method)
    {
        var targets = new bool[method.Code.Count];
        foreach (Op op in method.Code)
        {
            if (op.Branch is { } target)
            {
                targets[target.Index] = true;
            }
        }

        return targets;
    }
}
