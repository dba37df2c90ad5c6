// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>An error inside the hypervisor ends one machine and nothing else. The module's debugfs file <c>trap</c>
/// makes such an error happen; stock KVM has no counterpart.</summary>
static class ContainmentTests
{
    const string DebugFolder = "/sys/kernel/debug/sharpkvm";

    public static IEnumerable<TestCase> All =>
    [
        new("containment/machine_dies", MachineDies),
        new("containment/running_machine_dies", RunningMachineDies),
        new("containment/others_go_on", OthersGoOn),
        new("containment/memory_comes_back", MemoryComesBack, Own: true),
        new("containment/dead_machine_and_its_files", DeadMachineAndItsFiles),
    ];

    /// <summary>A guest that counts for ever, and the debugfs folder of its machine.</summary>
    static Guest Make(out string folder)
    {
        Check.Needs(Directory.Exists(DebugFolder), "SharpKVM's debugfs folder");
        string[] before = Directory.GetDirectories(DebugFolder);
        var guest = new Guest(GuestMode.Long, code =>
        {
            Label self = code.CreateLabel();
            code.mov(rbx, GuestLayout.Data);
            code.Label(ref self);
            code.inc(__qword_ptr[rbx]);
            code.jmp(self);
        });
        folder = Directory.GetDirectories(DebugFolder).Except(before).Single();
        return guest;
    }

    static void Trap(string folder)
    {
        using var file = new FileStream(Path.Combine(folder, "trap"), FileMode.Open, FileAccess.Write);
        file.Write([(byte)'1']);
    }

    /// <summary>The run that meets the error, and everything after it, tells that the machine is dead.</summary>
    static void ExpectDeath(Guest guest, int result)
    {
        if (result == 0)
            Check.Equal(KvmExit.InternalError, guest.Run.ExitReason, "exit reason");
        else
            Check.Fails(Errno.EIO, result, "KVM_RUN");
        Check.Fails(Errno.EIO, guest.Vcpu.TryRun(), "KVM_RUN again");
        KvmRegs regs = default;
        Check.Fails(Errno.EIO, guest.Vcpu.TryCall(KvmIoctl.GetRegs, ref regs), "KVM_GET_REGS");
        Check.Fails(Errno.EIO, guest.Vm.TrySetMemoryRegion(5, 0, 0x40000000, 0, 0), "a change of memory");
        Check.Fails(Errno.EIO, guest.Vm.TryCall(KvmIoctl.CreateVcpu, 7), "KVM_CREATE_VCPU");
    }

    static void MachineDies()
    {
        using Guest guest = Make(out string folder);
        Trap(folder);
        using var kicker = new Kicker(guest.Vcpu, TimeSpan.FromSeconds(5));
        ExpectDeath(guest, guest.Vcpu.TryRun());
    }

    static void RunningMachineDies()
    {
        using Guest guest = Make(out string folder);
        var trapper = new Thread(() =>
        {
            Wait.Until(() => guest.Memory.Read<ulong>(GuestLayout.Data) > 0, "the guest to run");
            Trap(folder);
        });
        trapper.Start();
        using var kicker = new Kicker(guest.Vcpu, TimeSpan.FromSeconds(10));
        int result = guest.Vcpu.TryRun();
        trapper.Join();
        ExpectDeath(guest, result);
    }

    static void OthersGoOn()
    {
        using var other = new Guest(GuestMode.Long, code =>
        {
            Label self = code.CreateLabel();
            code.Label(ref self);
            code.inc(rax);
            code.@out(0x10, al);
            code.jmp(self);
        });
        other.ExpectPort(KvmRunIo.Out, 0x10, 1);
        using (Guest guest = Make(out string folder))
        {
            Trap(folder);
            using var kicker = new Kicker(guest.Vcpu, TimeSpan.FromSeconds(5));
            ExpectDeath(guest, guest.Vcpu.TryRun());
            other.ExpectPort(KvmRunIo.Out, 0x10, 1);
        }
        Check.Equal(3, other.ExpectPort(KvmRunIo.Out, 0x10, 1)[0], "count of the other machine");
        using var fresh = new Guest(GuestMode.Long, [0xF4]);
        fresh.RunToHalt("a new machine");
    }

    static void MemoryComesBack()
    {
        HostMemory.ExpectNoGrowth(Body, 3, 30, "machines that died");

        static void Body(int machines)
        {
            for (int i = 0; i < machines; i++)
            {
                using Guest guest = Make(out string folder);
                guest.Vm.AddMemory(1, 0x40000000, 4 << 20);
                Trap(folder);
                using var kicker = new Kicker(guest.Vcpu, TimeSpan.FromSeconds(5));
                ExpectDeath(guest, guest.Vcpu.TryRun());
            }
        }
    }

    /// <summary>The files that tell of a machine can be read while it lives and when it is dead.</summary>
    static void DeadMachineAndItsFiles()
    {
        using Guest guest = Make(out string folder);
        using (new Kicker(guest.Vcpu, TimeSpan.FromMilliseconds(50)))
            Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "KVM_RUN");
        string exits = Path.Combine(folder, "exits");
        Check.That(File.ReadAllLines(exits).Length > 1, "exits in the trace of a living machine");
        Trap(folder);
        using (new Kicker(guest.Vcpu, TimeSpan.FromSeconds(5)))
            ExpectDeath(guest, guest.Vcpu.TryRun());
        Check.That(File.ReadAllLines(exits).Length > 1, "exits in the trace of a dead machine");
        guest.Dispose();
        Check.That(!Directory.Exists(folder), "the folder goes with the machine");
    }
}
