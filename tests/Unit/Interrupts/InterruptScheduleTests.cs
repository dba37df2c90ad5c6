// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Interrupts;
using SharpKvm.Tests.Host;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Interrupts;

/// <summary>
/// A vCPU that sleeps when it has nothing to do, devices that send the next interrupt when it has served the last, and
/// a VMM that replaces the routes meanwhile, in many orders of events that repeat (<see cref="Schedule"/>): each
/// interrupt comes, once. One that is lost leaves all of them waiting.
/// </summary>
[TestFixture]
internal sealed class InterruptScheduleTests
{
    private const int Seeds = 400, Interrupts = 8, Event = 5, Resampler = 6;
    private const uint LevelLine = 20, EdgeLine = 10, MsiLine = 30;
    private const byte LevelVector = 0x40, EdgeVector = 0x51, MsiVector = 0x62, IpiVector = 0x73;

    [Test]
    public void EachInterruptComesOnce()
    {
        for (int seed = 0; seed < Seeds; seed++)
        {
            using ChipVm vm = Make();
            Dictionary<int, int> served = new()
            {
                [LevelVector] = 0, [EdgeVector] = 0, [MsiVector] = 0, [IpiVector] = 0,
            };
            Schedule.Run(vm.Host, seed,
                () => Serve(vm, served),
                () => Repeat(LevelVector, () => vm.Trigger(LevelLine, resample: true)),
                () => Repeat(EdgeVector, () =>
                {
                    IrqChip.SetLine(ref vm.Vm, ChipVm.Global(EdgeLine), LineSource.UserSpace, true);
                    IrqChip.SetLine(ref vm.Vm, ChipVm.Global(EdgeLine), LineSource.UserSpace, false);
                }),
                () => Repeat(MsiVector, () => vm.Trigger(MsiLine)),
                () => Repeat(IpiVector, () => vm.Cpus.Send(0, IpiVector)),
                () =>
                {
                    for (int i = 0; i < Interrupts; i++)
                        SetRoutes(vm);
                });
            Assert.That(served.Values, Is.All.EqualTo(Interrupts), $"seed {seed}");
            Assert.That(vm.Host.Events.Count(Resampler), Is.EqualTo(Interrupts), $"seed {seed}");
            Assert.That(vm.Cpus[0].Apic.HighestPending(), Is.EqualTo(-1), $"seed {seed}");

            void Repeat(byte vector, Action send)
            {
                for (int i = 0; i < Interrupts; i++)
                {
                    send();
                    int before = i;
                    Schedule.Wait(() => served[vector] > before, $"vector {vector:x}");
                }
            }
        }
    }

    private static ChipVm Make()
    {
        ChipVm vm = new(IrqchipMode.Kernel, 0, 1);
        SetRoutes(vm);
        vm.Program(LevelLine, LevelVector, level: true);
        vm.Program(EdgeLine, EdgeVector);
        vm.Host.Events.Create(Event);
        vm.Host.Events.Create(Resampler);
        Assert.That(vm.Set(KVM_IRQFD, new kvm_irqfd
        {
            fd = Event, gsi = LevelLine, resamplefd = Resampler, flags = kvm_irqfd.KVM_IRQFD_FLAG_RESAMPLE,
        }), Is.Zero);
        return vm;
    }

    private static void SetRoutes(ChipVm vm) => Assert.That(vm.SetRoutes(
        ChipVm.Pin(LevelLine, kvm_irqchip.KVM_IRQCHIP_IOAPIC, LevelLine),
        ChipVm.Pin(EdgeLine, kvm_irqchip.KVM_IRQCHIP_IOAPIC, EdgeLine),
        ChipVm.Msi(MsiLine, MsiVector)), Is.Zero);

    /// <summary>
    /// The vCPU's thread: as the run loop, it takes the requests before it looks at what they stand for.
    /// </summary>
    private static void Serve(ChipVm vm, Dictionary<int, int> served)
    {
        while (served.Values.Any(count => count < Interrupts))
        {
            vm.Cpus.TakeRequests(0);
            Schedule.Point();
            for (int vector; (vector = vm.Cpus.Take(0)) >= 0;)
            {
                Schedule.Point();
                vm.Eoi(0);
                served[vector]++;
            }
            // It sleeps from here on: a kick that comes before the last look at the requests counts, too.
            int kicks = vm.Host.Thread.Kicks.Count;
            Schedule.Point();
            if (vm.Cpus[0].Shared.RequestBits == 0 && served.Values.Any(count => count < Interrupts))
                Schedule.Wait(() => vm.Host.Thread.Kicks.Count != kicks, "a kick");
        }
    }
}
