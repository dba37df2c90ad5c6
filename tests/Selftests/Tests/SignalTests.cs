// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;

namespace SharpKvm.Selftests;

/// <summary>How KVM_RUN is left from outside: signals, immediate_exit, signal masks.</summary>
static class SignalTests
{
    public static IEnumerable<TestCase> All =>
    [
        new("signal/interrupts_run", InterruptsRun),
        new("signal/pending_before_run", PendingBeforeRun),
        new("signal/guest_goes_on", GuestGoesOn),
        new("signal/immediate_exit", ImmediateExit),
        new("signal/immediate_exit_completes_io", ImmediateExitCompletesIo),
        new("signal/mask_blocks", MaskBlocks),
        new("signal/mask_unblocks", MaskUnblocks),
        new("signal/mask_unblocks_deadly", MaskUnblocksDeadly, Own: true),
        new("signal/mask_removed", MaskRemoved),
        new("signal/immediate_exit_from_other_thread", ImmediateExitFromOtherThread),
        new("signal/many", Many),
    ];

    static Guest Endless() => new(GuestMode.Long, code =>
    {
        Label self = code.CreateLabel();
        code.mov(rbx, GuestLayout.Data);
        code.Label(ref self);
        code.inc(__qword_ptr[rbx]);
        code.jmp(self);
    });

    static void InterruptsRun()
    {
        using Guest guest = Endless();
        Process.IgnoreByHandler(Process.SigUsr1);
        int thread = Process.CurrentThread;
        var sender = new Thread(() =>
        {
            Wait.Until(() => guest.Memory.Read<ulong>(GuestLayout.Data) > 0, "the guest to run");
            Process.Signal(thread, Process.SigUsr1);
        });
        sender.Start();
        Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "KVM_RUN");
        Check.Equal(KvmExit.Intr, guest.Run.ExitReason, "exit_reason");
        sender.Join();
    }

    static void PendingBeforeRun()
    {
        using Guest guest = Endless();
        Process.IgnoreByHandler(Process.SigUsr1);
        SetMask(guest, 0);
        Process.Mask(Process.SigUsr1, blocked: true);
        Process.Signal(Process.CurrentThread, Process.SigUsr1);
        int result = guest.Vcpu.TryRun();
        Process.Mask(Process.SigUsr1, blocked: false);
        Check.Fails(Errno.EINTR, result, "KVM_RUN");
    }

    static void GuestGoesOn()
    {
        using Guest guest = Endless();
        ulong last = 0;
        for (int i = 0; i < 5; i++)
        {
            using (new Kicker(guest.Vcpu, TimeSpan.FromMilliseconds(30)))
                Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "KVM_RUN");
            ulong now = guest.Memory.Read<ulong>(GuestLayout.Data);
            Check.That(now > last, $"round {i}: the guest went on from {last} to {now}");
            last = now;
        }
    }

    static void ImmediateExit()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        guest.Run.ImmediateExit = 1;
        for (int i = 0; i < 3; i++)
            Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "KVM_RUN");
        Check.Equal(GuestLayout.Code, guest.Vcpu.Regs.Rip, "rip: nothing ran");
        guest.Run.ImmediateExit = 0;
        guest.RunToHalt();
    }

    /// <summary>The way to finish a pending instruction before state is saved.</summary>
    static void ImmediateExitCompletesIo()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.@in(al, 0x10);
            code.hlt();
        });
        guest.ExpectPort(KvmRunIo.In, 0x10, 1)[0] = 0x99;
        guest.Run.ImmediateExit = 1;
        Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "KVM_RUN");
        guest.Run.ImmediateExit = 0;
        Check.Equal(0x99ul, guest.Vcpu.Regs.Rax, "rax");
        Check.Equal(GuestLayout.Code + 2, guest.Vcpu.Regs.Rip, "rip");
        guest.RunToHalt();
    }

    static void SetMask(Guest guest, ulong blocked)
    {
        byte[] mask = new byte[12];
        BitConverter.TryWriteBytes(mask, 8);
        BitConverter.TryWriteBytes(mask.AsSpan(4), blocked);
        guest.Vcpu.Call(KvmIoctl.SetSignalMask, mask);
    }

    static void MaskBlocks()
    {
        using Guest guest = Endless();
        Process.IgnoreByHandler(Process.SigUsr2);
        SetMask(guest, 1UL << (Process.SigUsr2 - 1));
        int thread = Process.CurrentThread;
        var sender = new Thread(() =>
        {
            Wait.Until(() => guest.Memory.Read<ulong>(GuestLayout.Data) > 0, "the guest to run");
            Process.Signal(thread, Process.SigUsr2);
            ulong seen = guest.Memory.Read<ulong>(GuestLayout.Data);
            Wait.Until(() => guest.Memory.Read<ulong>(GuestLayout.Data) > seen + 100000, "the guest to go on");
            guest.Memory.Write(GuestLayout.Data + 8, 1ul);
        });
        sender.Start();
        using (new Kicker(guest.Vcpu, TimeSpan.FromSeconds(3)))
            Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "KVM_RUN, ended by another signal");
        sender.Join();
        Check.Equal(1ul, guest.Memory.Read<ulong>(GuestLayout.Data + 8), "the guest ran on past the blocked signal");
    }

    /// <summary>What QEMU did before immediate_exit: block the signal outside of KVM_RUN, allow it inside.</summary>
    static void MaskUnblocks()
    {
        Process.IgnoreByHandler(Process.SigUsr2);
        EndByBlockedSignal();
        Process.Mask(Process.SigUsr2, blocked: false);
    }

    /// <summary>A signal that would end the process is as good: it stays pending, to be waited for.</summary>
    static void MaskUnblocksDeadly()
    {
        EndByBlockedSignal();
        Check.That(Process.IsPending(Process.SigUsr2), "the signal is pending");
    }

    static void EndByBlockedSignal()
    {
        using Guest guest = Endless();
        SetMask(guest, 0);
        Process.Mask(Process.SigUsr2, blocked: true);
        int thread = Process.CurrentThread;
        var sender = new Thread(() =>
        {
            Wait.Until(() => guest.Memory.Read<ulong>(GuestLayout.Data) > 0, "the guest to run");
            Process.Signal(thread, Process.SigUsr2);
        });
        sender.Start();
        int result = guest.Vcpu.TryRun();
        sender.Join();
        Check.Fails(Errno.EINTR, result, "KVM_RUN");
    }

    static void MaskRemoved()
    {
        using Guest guest = Endless();
        SetMask(guest, ulong.MaxValue);
        guest.Vcpu.Call(KvmIoctl.SetSignalMask, 0);
        using (new Kicker(guest.Vcpu, TimeSpan.FromMilliseconds(50)))
            Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "KVM_RUN");
    }

    static void ImmediateExitFromOtherThread()
    {
        using Guest guest = Endless();
        using var kicker = new Kicker(guest.Vcpu, TimeSpan.FromMilliseconds(50));
        Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "first");
        Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "second, with immediate_exit still set");
    }

    static void Many()
    {
        using Guest guest = Endless();
        Process.IgnoreByHandler(Process.SigUsr1);
        int thread = Process.CurrentThread;
        bool stop = false;
        var sender = new Thread(() =>
        {
            while (!Volatile.Read(ref stop))
            {
                Process.Signal(thread, Process.SigUsr1);
                Thread.Sleep(1);
            }
        });
        sender.Start();
        long start = Stopwatch.GetTimestamp();
        for (int i = 0; i < 100; i++)
            Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), $"round {i}");
        Volatile.Write(ref stop, true);
        sender.Join();
        Check.That(Stopwatch.GetElapsedTime(start).TotalSeconds < 30, "100 signals in half a minute");
    }
}
