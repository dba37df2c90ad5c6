// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm;

/// <summary>
/// The module as an administrator meets it: what it says of itself, when it refuses, how it lives with CPU hotplug
/// and power-off while a guest runs, and that it goes without a trace.
/// </summary>
[TestFixture]
public sealed class ModuleTests
{
    private const string Busy = "Device or resource busy";

    private static readonly string Module = L1Kernel.Default.ModuleBuilt("sharpkvm");

    private L1Result run = null!;

    [OneTimeSetUp]
    public void Boot()
    {
        Assert.That(Module, Does.Exist, "the module is not built: make");
        run = L1Machine.Run(new L1Options
        {
            Name = "module",
            Timeout = TimeSpan.FromMinutes(4),
            Script = $$"""
                load() { insmod '{{Module}}' "$@" 2>&1; }
                # A guest without anything to boot: its firmware looks for a disk for ever.
                guest() {
                    qemu-system-x86_64 -accel kvm,kernel-irqchip=off -machine q35 -m 64 -nodefaults -no-user-config \
                        -display none -monitor none </dev/null >/dev/null 2>&1 &
                    guest=$!
                    sleep $((4 * LAB_TIME_FACTOR))
                }
                alive() { kill -0 $guest 2>/dev/null && echo alive || echo dead; }

                echo ::info; modinfo '{{Module}}'
                echo ::busy; modprobe kvm-amd; load; rmmod kvm-amd kvm; dmesg | grep 'sharpkvm: '
                echo ::device; load; stat -c '%n %a %U %F' /dev/sharpkvm
                echo ::stock; modprobe kvm-amd 2>&1; grep -c ^kvm_amd /proc/modules; rmmod kvm-amd kvm 2>/dev/null
                echo ::unload; rmmod sharpkvm 2>&1; ls /dev/sharpkvm 2>&1; grep sharpkvm /proc/modules
                echo ::reload; for i in 1 2 3 4 5; do load && rmmod sharpkvm || echo failed; done
                echo ::name; load devname=kvm; stat -c '%n %a %U %F' /dev/kvm
                echo ::live; guest; alive; rmmod sharpkvm 2>&1; alive
                cpu=/sys/devices/system/cpu/cpu1/online
                echo ::hotplug; [ -e $cpu ] || echo 'one CPU'
                [ ! -e $cpu ] || for i in 1 2 3; do echo 0 >$cpu && sleep 1 && echo 1 >$cpu && sleep 1; done; alive
                echo ::killed; kill -9 $guest; wait $guest 2>/dev/null; check_leaks; rmmod sharpkvm 2>&1; alive
                echo ::off; load devname=kvm; guest; alive
                """,
        });
    }

    [Test]
    public void RunEndsWellAndItsLogIsClean() => Assert.That(run.Succeeded, Is.True, run.Describe());

    [TestCase("author:", "The SharpKVM authors")]
    [TestCase("license:", "GPL")]
    [TestCase("version:", "0.1.0")]
    public void ModuleSaysWhatItIs(string field, string value) => Assert.That(
        Section("info").Where(line => line.StartsWith(field, StringComparison.Ordinal)),
        Has.Some.Contains(value));

    [Test]
    public void RefusesWhileStockKvmIsLoaded()
    {
        Assert.That(Section("busy"), Has.Some.Contains(Busy));
        Assert.That(Section("busy"), Has.Some.Contains("sharpkvm: "), "the kernel log says why");
    }

    [Test]
    public void DeviceIsForRootOnly() =>
        Assert.That(Section("device"), Is.EqualTo((string[])["/dev/sharpkvm 600 root character special file"]));

    [Test]
    public void StockKvmStaysOutMeanwhile() => Assert.That(Section("stock"), Has.Some.EqualTo("0"));

    [Test]
    public void UnloadLeavesNothing()
    {
        Assert.That(Section("unload"), Has.One.Items);
        Assert.That(Section("unload")[0], Does.Contain("No such file"));
    }

    [Test]
    public void LoadsAgainAndAgain() => Assert.That(Section("reload"), Is.Empty);

    [Test]
    public void DeviceMayBeNamedKvm() =>
        Assert.That(Section("name"), Is.EqualTo((string[])["/dev/kvm 600 root character special file"]));

    [Test]
    public void UnloadIsRefusedWhileAGuestLives()
    {
        Assert.That(Section("live"), Has.Some.Contains("in use"));
        Assert.That(Section("live").Where(line => line is "alive" or "dead"), Is.EqualTo((string[])["alive", "alive"]));
    }

    [Test]
    public void GuestSurvivesCpuHotplug() =>
        Assert.That(Section("hotplug"), Has.Some.EqualTo("alive").And.None.Contains("error"));

    [Test]
    public void UnloadsAfterItsUserWasKilled() => Assert.That(Section("killed"), Is.EqualTo((string[])["dead"]));

    [Test]
    public void MachinePowersOffUnderALiveGuest()
    {
        Assert.That(Section("off"), Is.EqualTo((string[])["alive"]));
        Assert.That(run.End, Is.EqualTo(L1End.Completed), run.Describe());
    }

    [Test]
    public void RefusesACpuWithoutSvm()
    {
        L1Result plain = L1Machine.Run(new L1Options
        {
            Name = "module-no-svm",
            CpuFeatures = ["-svm"],
            Script = $"insmod '{Module}' 2>&1; echo ::log; dmesg | grep 'sharpkvm: '; ls /dev/sharpkvm",
        });
        Assert.That(plain.Output, Has.Some.Match("insmod.*(not supported|No such device)"), plain.Describe());
        Assert.That(plain.Section("log"), Has.Some.Contains("SVM").IgnoreCase);
        Assert.That(plain.Reports, Is.Empty);
    }

    private IReadOnlyList<string> Section(string name) => run.Section(name) ?? [];
}
