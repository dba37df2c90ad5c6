// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;
using SharpKvm.Tests.Svm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Vm;

/// <summary>
/// Exits that no hardware would make in this order, with any registers, over any bytes as code, and a VMM that writes
/// what it likes where it may. In the kernel an exception of the core ends the VM: none of this may cause one.
/// </summary>
[TestFixture]
internal sealed class RandomGuestTests
{
    private const uint OtherExits = 0x20;
    private const int ExitData = 32;

    private static readonly ulong[] s_exitCodes =
    [
        .. typeof(ExitCode).GetFields().Select(field => (ulong)field.GetRawConstantValue()!),
        .. Enumerable.Range(0, (int)OtherExits).Select(code => (ulong)code * 8),
    ];

    /// <summary>What hardware may say of a delivery that it did not finish.</summary>
    private static readonly ulong[] s_interrupted =
    [
        Injection.None, Injection.None, Injection.None, Injection.Interrupt(0x31), Injection.Nmi,
        Injection.Exception(3), Injection.Exception(6), Injection.Exception(8, 0), Injection.Exception(14, 4),
        Injection.SoftInterrupt(0x80),
    ];

    private static readonly uint[] s_vcpuCommands =
    [
        .. typeof(Ioctl).GetFields().Select(field => (uint)field.GetRawConstantValue()!),
    ];

    /// <summary>Mostly where something is: code, memory, the device, ends of it all; sometimes anything.</summary>
    private static readonly Gen<ulong> s_values = Gen.Frequency(
        (6, Gen.ULong[0, 0x10008]),
        (2, Gen.ULong[SvmGuest.Device - 8, SvmGuest.Device + 16]),
        (2, Gen.OneOfConst<ulong>(
            0, 1, 0x80, 0xffff, 0xffffffff, 1ul << 31, 1ul << 47, 0xffff8000_00000000, ulong.MaxValue)),
        (2, Gen.ULong));

    private sealed record Event(
        ulong Code, ulong Info1, ulong Info2, ulong Interrupted, ulong Rip, ulong Rflags, ulong[] Registers,
        byte[] Bytes, byte[] RunPage, uint Command, byte[] Argument);

    private static readonly Gen<Event> s_events = Gen.Select(
        Gen.Select(Gen.OneOfConst(s_exitCodes), s_values, s_values,
            Gen.OneOfConst(s_interrupted), s_values, Gen.ULong),
        Gen.Select(s_values.Array[16], Gen.Byte.Array[15], Gen.Byte.Array[64], Gen.OneOfConst(s_vcpuCommands),
            Gen.Byte.Array[0, 512]),
        (exit, rest) => new Event(exit.Item1, exit.Item2, exit.Item3, exit.Item4, exit.Item5, exit.Item6,
            rest.Item1, rest.Item2, rest.Item3, rest.Item4, rest.Item5));

    [Test]
    public void NothingThatAGuestDoesTrapsTheCore() => Gen.Select(Gen.Bool, Gen.Bool, Gen.Bool, s_events.Array[1, 12])
        .Sample((wide, nextRip, shadow, events) =>
        {
            using SvmGuest guest = new(nextRip, shadow: shadow);
            if (wide)
                guest.EnterLongMode();
            foreach (Event happening in events)
                Assert.That(Play(guest, happening), Is.AnyOf(0, Errno.EINTR, Errno.EFAULT, Errno.EINVAL, Errno.ENOMEM));
        }, iter: 1000, threads: 1);

    /// <summary>The same with a VMM that sets state at random in between: whatever it is refused or not.</summary>
    [Test]
    public void NothingThatUserSpaceSetsTrapsTheCore() => Gen.Select(Gen.Bool, Gen.Bool, s_events.Array[1, 12])
        .Sample((wide, shadow, events) =>
        {
            using SvmGuest guest = new(shadow: shadow);
            guest.Processor.ChecksState = false;
            if (wide)
                guest.EnterLongMode();
            foreach (Event happening in events)
            {
                guest.PutArgument(happening.Argument);
                guest.Ioctl(happening.Command, Tests.Cpu.TestVcpu.Argument);
                Play(guest, happening);
            }
        }, iter: 1000, threads: 1);

    /// <summary>One KVM_RUN with one exit in it, after user space has scribbled over the run page.</summary>
    private static int Play(SvmGuest guest, Event happening)
    {
        byte[] scribble = happening.RunPage;
        guest.RunPage.request_interrupt_window = (byte)(scribble[0] < 32 ? 1 : 0);
        guest.RunPage.immediate_exit = (byte)(scribble[1] < 16 ? 1 : 0);
        guest.RunPage.cr8 = scribble[2] & 15u;
        scribble.CopyTo(guest.RunPageBytes[ExitData..]);
        scribble.CopyTo(guest.Port);
        return guest.Run(Turn.Exit(happening.Code, happening.Info1, happening.Info2).During(happening.Interrupted)
            .Doing((ref vmcb, ref registers) =>
            {
                vmcb.Rip = happening.Rip;
                vmcb.Rflags = happening.Rflags;
                for (int register = 0; register < 16; register++)
                    registers[(Gpr)register] = happening.Registers[register];
                vmcb.Rax = happening.Registers[0];
                vmcb.Rsp = happening.Registers[(int)Gpr.Rsp];
                if (happening.Rip < SvmGuest.MemoryPages * Page.Size - 16)
                    guest.Write(happening.Rip, happening.Bytes);
            }));
    }
}
