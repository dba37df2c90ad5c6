// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace IlPatch.Obj;

/// <summary>Puts the instruction itself in place of a call to a member of <c>Kernel.X86</c>.</summary>
internal static class Intrinsics
{
    private const string Prefix = "cs_x86_";

    private static readonly Dictionary<string, Action<Assembler>> Bodies = Create();

    public static bool IsIntrinsic(ElfSymbol symbol) => symbol.Name.StartsWith(Prefix, StringComparison.Ordinal);

    public static void Run(Method method)
    {
        method.Rewrite(op =>
        {
            if (op.Symbol is not { } callee || !IsIntrinsic(callee.Symbol))
            {
                return null;
            }

            if (op.Instruction.FlowControl is not FlowControl.Call and not FlowControl.UnconditionalBranch)
            {
                throw method.Refuse(op, $"takes the address of the intrinsic {callee.Symbol.Name}", "Call it.");
            }

            if (!Bodies.TryGetValue(callee.Symbol.Name[Prefix.Length..], out Action<Assembler>? body))
            {
                throw method.Refuse(op, $"calls the unknown intrinsic {callee.Symbol.Name}", "See Kernel.X86.");
            }

            return Expand(op, body);
        });
        // A result that is made later seems to read the one before.
        while (DropUnreadResults(method))
        {
        }
    }

    /// <summary>Whether an instruction has failed is made a boolean of the flags; mostly nobody reads it.</summary>
    private static bool DropUnreadResults(Method method)
    {
        var flow = new Flow(method);
        HashSet<Op> dropped = [];
        foreach ((Op set, Op widen) in method.Code.Zip(method.Code.Skip(1)))
        {
            if (set.Instruction.Code == Code.Seta_rm8 && set.Instruction.Op0Register == Register.AL
                && widen.Instruction.Code == Code.Movzx_r32_rm8 && widen.Instruction.Op0Register == Register.EAX
                && (flow.LiveAfter(widen.Index) & Place.Of(Register.RAX)) == 0)
            {
                dropped.UnionWith([set, widen]);
            }
        }

        method.Rewrite(op => dropped.Contains(op) ? [] : null);
        return dropped.Count > 0;
    }

    private static List<Op> Expand(Op op, Action<Assembler> body)
    {
        var assembler = new Assembler(64);
        body(assembler);
        var result = new List<Op>();
        foreach (Instruction instruction in assembler.Instructions)
        {
            result.Add(new Op(instruction, op.Line)
            {
                Fault = MayFault(instruction) ? new Trap(TrapKind.PrivilegedFault, op.Line) : null,
            });
        }

        if (op.Instruction.FlowControl is FlowControl.UnconditionalBranch)
        {
            result.Add(op.With(Instruction.Create(Code.Retnq)));
        }

        return result;
    }

    private static bool MayFault(in Instruction instruction)
        => instruction.Mnemonic switch
        {
            Mnemonic.Rdmsr or Mnemonic.Wrmsr or Mnemonic.Xsetbv or Mnemonic.Xgetbv => true,
            Mnemonic.Vmload or Mnemonic.Vmsave or Mnemonic.Clgi or Mnemonic.Stgi or Mnemonic.Invlpga => true,
            Mnemonic.Vmread or Mnemonic.Vmwrite or Mnemonic.Vmclear or Mnemonic.Vmptrld => true,
            Mnemonic.Vmxon or Mnemonic.Vmxoff or Mnemonic.Invept or Mnemonic.Invvpid => true,
            Mnemonic.Mov => instruction.Op0Register.IsCR() || instruction.Op0Register.IsDR(),
            _ => false,
        };

    /// <summary>Arguments arrive in rdi, rsi, rdx; the result leaves in rax; caller-saved registers are free.</summary>
    private static Dictionary<string, Action<Assembler>> Create()
    {
        var bodies = new Dictionary<string, Action<Assembler>>
        {
            ["rdmsr"] = a => { a.mov(ecx, edi); a.rdmsr(); a.shl(rdx, 32); a.or(rax, rdx); },
            ["wrmsr"] = a => { a.mov(ecx, edi); a.mov(rax, rsi); a.mov(rdx, rsi); a.shr(rdx, 32); a.wrmsr(); },
            ["in8"] = a => { a.mov(edx, edi); a.@in(al, dx); a.movzx(eax, al); },
            ["in16"] = a => { a.mov(edx, edi); a.@in(ax, dx); a.movzx(eax, ax); },
            ["in32"] = a => { a.mov(edx, edi); a.@in(eax, dx); },
            ["out8"] = a => { a.mov(edx, edi); a.mov(eax, esi); a.@out(dx, al); },
            ["out16"] = a => { a.mov(edx, edi); a.mov(eax, esi); a.@out(dx, ax); },
            ["out32"] = a => { a.mov(edx, edi); a.mov(eax, esi); a.@out(dx, eax); },
            ["read_rflags"] = a => { a.pushfq(); a.pop(rax); },
            ["cli"] = a => a.cli(),
            ["sti"] = a => a.sti(),
            ["stac"] = a => a.stac(),
            ["clac"] = a => a.clac(),
            ["clgi"] = a => a.clgi(),
            ["stgi"] = a => a.stgi(),
            ["vmload"] = a => { a.mov(rax, rdi); a.AddInstruction(Instruction.Create(Code.Vmloadq, Register.RAX)); },
            ["vmsave"] = a => { a.mov(rax, rdi); a.AddInstruction(Instruction.Create(Code.Vmsaveq, Register.RAX)); },
            ["invlpga"] = a =>
            {
                a.mov(rax, rdi);
                a.mov(ecx, esi);
                a.AddInstruction(Instruction.Create(Code.Invlpgaq, Register.RAX, Register.ECX));
            },
            ["invlpg"] = a => a.invlpg(__[rdi]),
            ["wbinvd"] = a => a.wbinvd(),
            ["rdtsc"] = a => { a.rdtsc(); a.shl(rdx, 32); a.or(rax, rdx); },
            ["rdtscp"] = a => { a.rdtscp(); a.mov(__dword_ptr[rdi], ecx); a.shl(rdx, 32); a.or(rax, rdx); },
            ["cpuid"] = a =>
            {
                a.mov(r8, rdx);
                a.mov(r9, rbx);
                a.mov(eax, edi);
                a.mov(ecx, esi);
                a.cpuid();
                a.mov(__dword_ptr[r8], eax);
                a.mov(__dword_ptr[r8 + 4], ebx);
                a.mov(__dword_ptr[r8 + 8], ecx);
                a.mov(__dword_ptr[r8 + 12], edx);
                a.mov(rbx, r9);
            },
            ["xgetbv"] = a => { a.mov(ecx, edi); a.xgetbv(); a.shl(rdx, 32); a.or(rax, rdx); },
            ["xsetbv"] = a => { a.mov(ecx, edi); a.mov(rax, rsi); a.mov(rdx, rsi); a.shr(rdx, 32); a.xsetbv(); },
            ["pause"] = a => a.pause(),
            ["mfence"] = a => a.mfence(),
            ["lfence"] = a => a.lfence(),
            ["sfence"] = a => a.sfence(),
            ["vmread"] = a => { a.xor(eax, eax); a.vmread(rax, rdi); },
            ["vmwrite"] = a => { a.vmwrite(rdi, rsi); a.seta(al); a.movzx(eax, al); },
            ["vmclear"] = a => { a.vmclear(__qword_ptr[rdi]); a.seta(al); a.movzx(eax, al); },
            ["vmptrld"] = a => { a.vmptrld(__qword_ptr[rdi]); a.seta(al); a.movzx(eax, al); },
            ["vmxon"] = a => { a.vmxon(__qword_ptr[rdi]); a.seta(al); a.movzx(eax, al); },
            ["vmxoff"] = a => { a.vmxoff(); a.seta(al); a.movzx(eax, al); },
            ["invept"] = a => { a.invept(rdi, __xmmword_ptr[rsi]); a.seta(al); a.movzx(eax, al); },
            ["invvpid"] = a => { a.invvpid(rdi, __xmmword_ptr[rsi]); a.seta(al); a.movzx(eax, al); },
            ["array_index_nospec"] = a => { a.cmp(rdi, rsi); a.sbb(rax, rax); a.and(rax, rdi); },
            ["multiply_high"] = a => { a.mov(rax, rdi); a.mul(rsi); a.mov(rax, rdx); },
            ["bit_scan_forward32"] = a => a.bsf(eax, edi),
            ["bit_scan_forward64"] = a => a.bsf(rax, rdi),
            ["bit_scan_reverse32"] = a => a.bsr(eax, edi),
            ["bit_scan_reverse64"] = a => a.bsr(rax, rdi),
            ["lock_bit_set"] = a =>
            {
                a.and(esi, 63);
                a.@lock.bts(__qword_ptr[rdi], rsi);
                a.setb(al);
                a.movzx(eax, al);
            },
            ["lock_bit_reset"] = a =>
            {
                a.and(esi, 63);
                a.@lock.btr(__qword_ptr[rdi], rsi);
                a.setb(al);
                a.movzx(eax, al);
            },
            ["lock_bit_complement"] = a =>
            {
                a.and(esi, 63);
                a.@lock.btc(__qword_ptr[rdi], rsi);
                a.setb(al);
                a.movzx(eax, al);
            },
            ["lock_or"] = a => a.@lock.or(__qword_ptr[rdi], rsi),
            ["lock_and"] = a => a.@lock.and(__qword_ptr[rdi], rsi),
        };

        foreach ((int number, AssemblerRegisterCR register) in
            new[] { (0, cr0), (2, cr2), (3, cr3), (4, cr4), (8, cr8) })
        {
            bodies[$"read_cr{number}"] = a => a.mov(rax, register);
            bodies[$"write_cr{number}"] = a => a.mov(register, rdi);
        }

        foreach ((int number, AssemblerRegisterDR register) in
            new[] { (0, dr0), (1, dr1), (2, dr2), (3, dr3), (6, dr6), (7, dr7) })
        {
            bodies[$"read_dr{number}"] = a => a.mov(rax, register);
            bodies[$"write_dr{number}"] = a => a.mov(register, rdi);
        }

        return bodies;
    }
}
