// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm;

/// <summary>
/// A bounds check fails inside the core while it serves one of two guests. That guest's VM is dead from then on; the
/// other guest boots Linux to its end, the host goes on, and the module unloads.
/// </summary>
[TestFixture]
public sealed class ContainmentTests
{
    private const string Trap = "^sharpkvm: trap: ";

    private L1Result run = null!;

    [OneTimeSetUp]
    public void Boot()
    {
        string module = L1Kernel.Default.ModuleBuilt("sharpkvm");
        Assert.That(module, Does.Exist, "the module is not built: make");
        var other = new GuestBoot { IrqChip = IrqChip.Off, Cpus = 1 };
        run = L1Machine.Run(new L1Options
        {
            Name = "containment",
            Timeout = TimeSpan.FromMinutes(4),
            ExpectedReports = [Trap],
            Script = $"""
                insmod '{module}' devname=kvm || exit 125
                {other.Command(Hypervisor.SharpKvm)} </dev/null >/job/other.txt 2>&1 &
                other=$!
                # A guest without anything to boot: its firmware looks for a disk for ever.
                qemu-system-x86_64 -accel kvm,kernel-irqchip=off -machine q35 -m 64 -nodefaults -no-user-config \
                    -display none -monitor none </dev/null >/job/victim.txt 2>&1 &
                victim=$!
                sleep $((6 * LAB_TIME_FACTOR))
                echo ::traps; ls /sys/kernel/debug/sharpkvm/$victim-*/trap
                echo 1 >/sys/kernel/debug/sharpkvm/$victim-*/trap
                sleep $((2 * LAB_TIME_FACTOR))
                echo ::victim; cat /job/victim.txt
                echo ::other; wait $other; echo "status $?"; cat /job/other.txt
                # QEMU may have given up by itself: it asks the dead machine for its clock.
                echo ::unload; kill -9 $victim 2>/dev/null; wait $victim 2>/dev/null
                check_leaks; rmmod sharpkvm && echo gone
                """,
        });
    }

    [Test]
    public void RunEndsWellAndTheRestOfTheLogIsClean() => Assert.That(run.Succeeded, Is.True, run.Describe());

    [Test]
    public void LogNamesTheSourceLineOnce() => Assert.That(
        run.KernelLog.Select(KernelLog.WithoutTime).Where(line => line.StartsWith("sharpkvm: trap:")),
        Has.One.Items.And.All.Match(@"index out of range in SharpKvm\.\S+ \(\w+\.cs:\d+\)$"));

    [Test]
    public void TrappedVmEndsWithAnInternalError() =>
        Assert.That(run.Section("victim"), Has.Some.Contains("KVM internal error"));

    [Test]
    public void OtherVmGoesOnToItsEnd()
    {
        Assert.That(run.Section("other"), Has.Some.EqualTo("status 0"));
        Assert.That(run.Section("other"), Has.Some.Contains(GuestBoot.LastWord));
    }

    [Test]
    public void ModuleUnloads() => Assert.That(run.Section("unload"), Is.EqualTo((string[])["gone"]));
}
