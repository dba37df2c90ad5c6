// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;
using SharpKvm.Tests.Host;

namespace SharpKvm.Tests.Svm;

/// <summary>What a guest does in its turn, before it exits. RAX, RSP, RIP and RFLAGS are in the VMCB.</summary>
internal delegate void GuestWork(ref Vmcb vmcb, ref GuestRegisters registers);

/// <summary>One turn of the guest and how it ends.</summary>
internal sealed class Turn
{
    private bool _enters = true;
    private ulong _code, _info1, _info2, _interrupted, _length;
    private GuestWork? _work;

    /// <summary>An exit with its two qualifications.</summary>
    public static Turn Exit(ulong code, ulong info1 = 0, ulong info2 = 0) =>
        new() { _code = code, _info1 = info1, _info2 = info2 };

    /// <summary>An intercepted instruction of <paramref name="length"/> bytes: hardware tells where it ends.</summary>
    public static Turn Instruction(ulong code, ulong length, ulong info1 = 0) =>
        new() { _code = code, _info1 = info1, _length = length };

    /// <summary>IOIO: EXITINFO1 as APM vol. 2, 15.10.2 has it, EXITINFO2 is the next RIP.</summary>
    public static Turn Port(ushort port, int size, bool input, ulong nextRip) =>
        Exit(ExitCode.Ioio, (ulong)port << 16 | (ulong)size << 4 | (input ? 1u : 0), nextRip);

    /// <summary>A nested page fault of a data access (APM vol. 2, 15.25.6).</summary>
    public static Turn NestedFault(ulong address, bool write = false) =>
        Exit(ExitCode.NestedPageFault, 1ul << 32 | (write ? 6u : 4u), address);

    /// <summary>A nested page fault of the page walk that a data access needed: at a guest page-table entry.</summary>
    public static Turn NestedTableFault(ulong entry) => Exit(ExitCode.NestedPageFault, 1ul << 33 | 6, entry);

    /// <summary>A request, a signal or the scheduler came first: the guest does not run.</summary>
    public static Turn NotEntered() => new() { _enters = false };

    /// <summary>The exit came while <paramref name="injection"/> was being delivered (EXITINTINFO).</summary>
    public Turn During(ulong injection)
    {
        _interrupted = injection;
        return this;
    }

    public Turn Doing(GuestWork work)
    {
        _work = work;
        return this;
    }

    public bool Play(ref Vmcb vmcb, ref GuestRegisters registers)
    {
        if (!_enters)
            return false;
        vmcb.Inject = default;
        _work?.Invoke(ref vmcb, ref registers);
        vmcb.ExitCode = _code;
        vmcb.ExitInfo1 = _info1;
        vmcb.ExitInfo2 = _info2;
        vmcb.ExitInterrupt = new EventInjection(_interrupted);
        vmcb.NextRip = vmcb.Rip + _length;
        return true;
    }
}

/// <summary>A physical CPU with SVM: <see cref="ScriptedProcessor{TTurn, TBlock}"/>.</summary>
internal sealed class SvmProcessor(SimulatedThread thread) : ScriptedProcessor<Turn, Vmcb>(thread)
{
    public bool Enter(ref Vmcb vmcb, ref GuestRegisters registers)
    {
        if (ChecksState)
            CheckConsistency(in vmcb);
        return TryTakeTurn(in vmcb, out Turn? turn) && turn.Play(ref vmcb, ref registers);
    }

    /// <summary>What VMRUN refuses with VMEXIT_INVALID (APM vol. 2, 15.5.1).</summary>
    private static void CheckConsistency(in Vmcb vmcb)
    {
        const uint CanonicalVmrun = 1;
        Assert.That(vmcb.Efer & Efer.Svme, Is.Not.Zero, "EFER.SVME");
        Assert.That(vmcb.Cr0 & (Cr0.Cd | Cr0.Nw), Is.Not.EqualTo(Cr0.Nw), "CR0.NW without CR0.CD");
        Assert.That(vmcb.Cr0 >> 32, Is.Zero, "CR0");
        Assert.That((vmcb.Dr6 | vmcb.Dr7) >> 32, Is.Zero, "DR6, DR7");
        Assert.That((uint)vmcb.Intercept4 & CanonicalVmrun, Is.Not.Zero, "VMRUN is intercepted");
        Assert.That(vmcb.Asid, Is.Not.Zero, "ASID");
        bool paging = (vmcb.Cr0 & Cr0.Pg) != 0;
        if ((vmcb.Efer & Efer.Lme) != 0 && paging)
            Assert.That((vmcb.Cr4 & Cr4.Pae) != 0 && (vmcb.Cr0 & Cr0.Pe) != 0, "long mode without CR4.PAE or CR0.PE");
        if (vmcb.Inject.Valid && vmcb.Inject.Type == EventInjection.EventType.Exception)
            Assert.That(vmcb.Inject.Vector, Is.LessThan(32).And.Not.EqualTo(Vector.Nmi.Value), "EVENTINJ");
    }
}
