// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Interrupts;
using static SharpKvm.Tests.Interrupts.ChipVm;

namespace SharpKvm.Tests.Interrupts;

/// <summary>
/// Random lines, routes, masks and ends, on two CPUs, beside a plain model: no interrupt is lost and none comes twice.
/// </summary>
[TestFixture]
internal sealed class IrqChipModelTests
{
    private const uint IoApic = kvm_irqchip.KVM_IRQCHIP_IOAPIC;
    private const int Pins = 8, FirstPin = 10, Operations = 500;

    /// <summary>One pin of the IOAPIC with a vector of its own.</summary>
    private sealed class ModelPin(int index, Random random)
    {
        public uint Number { get; } = (uint)(FirstPin + index);
        public byte Vector { get; } = (byte)(0x40 + index * 0x14);
        public uint Cpu { get; } = (uint)random.Next(2);
        public bool IsLevel { get; } = random.Next(2) == 0;
        public bool High, Masked, Unanswered;
    }

    private sealed class Model(Random random)
    {
        public ModelPin[] Pins { get; } =
            [.. Enumerable.Range(0, IrqChipModelTests.Pins).Select(i => new ModelPin(i, random))];
        public SortedSet<byte>[] Waiting { get; } = [[], []];
        public SortedSet<byte>[] Serving { get; } = [[], []];

        public int SetLine(ModelPin pin, bool high)
        {
            bool rises = high && !pin.High;
            pin.High = high;
            if (!high)
                return 1;
            return pin.IsLevel || rises ? Send(pin) : 0;
        }

        public void SetMask(ModelPin pin, bool masked)
        {
            pin.Masked = masked;
            if (pin is { IsLevel: true, High: true })
                Send(pin);
        }

        public int Take(uint cpu)
        {
            byte highest = Waiting[cpu].Max;
            if (highest >> 4 <= Serving[cpu].Max >> 4)
                return -1;
            Waiting[cpu].Remove(highest);
            Serving[cpu].Add(highest);
            return highest;
        }

        public void End(uint cpu)
        {
            byte vector = Serving[cpu].Max;
            if (!Serving[cpu].Remove(vector))
                return;
            ModelPin pin = Pins.First(pin => pin.Vector == vector);
            pin.Unanswered = false;
            if (pin is { IsLevel: true, High: true })
                Send(pin);
        }

        private int Send(ModelPin pin)
        {
            if (pin.Masked)
                return -1;
            if (pin.Unanswered)
                return 0;
            pin.Unanswered = pin.IsLevel;
            Waiting[pin.Cpu].Add(pin.Vector);
            return 1;
        }
    }

    [Test]
    public void NoInterruptIsLostOrDoubled([Range(1, 20)] int seed)
    {
        Random random = new(seed);
        using ChipVm vm = new(IrqchipMode.Kernel, 0, 1);
        Model model = new(random);
        foreach (ModelPin pin in model.Pins)
            vm.Program(pin.Number, pin.Vector, pin.Cpu, pin.IsLevel);
        int turn = 0;
        Reroute(vm, turn);
        for (int i = 0; i < Operations; i++)
            Step(i);
        Drain();

        void Step(int number)
        {
            ModelPin pin = model.Pins[random.Next(Pins)];
            uint cpu = (uint)random.Next(2);
            switch (random.Next(12))
            {
                case < 5:
                    bool high = random.Next(2) == 0;
                    int status = vm.Line(GsiOf(pin, turn), high);
                    Assert.That(status, Is.EqualTo(model.SetLine(pin, high)), $"operation {number}");
                    break;
                case < 8:
                    Assert.That(vm.Cpus.Take(cpu), Is.EqualTo(model.Take(cpu)), $"operation {number}");
                    break;
                case < 10:
                    vm.Eoi(cpu);
                    model.End(cpu);
                    break;
                case 10:
                    bool masked = random.Next(2) == 0;
                    vm.Program(pin.Number, pin.Vector, pin.Cpu, pin.IsLevel, masked);
                    // Its upper half is written before the mask changes.
                    model.SetMask(pin, pin.Masked);
                    model.SetMask(pin, masked);
                    break;
                default:
                    Reroute(vm, turn = random.Next(Pins));
                    break;
            }
            CheckCpus(vm, model, number);
        }

        void Drain()
        {
            foreach (ModelPin pin in model.Pins)
            {
                vm.Line(GsiOf(pin, turn), false);
                model.SetLine(pin, false);
            }
            for (uint cpu = 0; cpu < 2; cpu++)
            {
                while (model.Waiting[cpu].Count + model.Serving[cpu].Count != 0)
                {
                    Assert.That(vm.Cpus.Take(cpu), Is.EqualTo(model.Take(cpu)));
                    vm.Eoi(cpu);
                    model.End(cpu);
                }
                Assert.That(vm.Cpus.Take(cpu), Is.EqualTo(-1));
            }
            Assert.That(vm.IoApic.irr, Is.Zero);
        }
    }

    /// <summary>GSI 0 leads to another pin in each turn, and the others follow.</summary>
    private static void Reroute(ChipVm vm, int turn)
    {
        var routes = new kvm_irq_routing_entry[Pins];
        for (uint gsi = 0; gsi < Pins; gsi++)
            routes[gsi] = Pin(gsi, IoApic, FirstPin + (gsi + (uint)turn) % Pins);
        Assert.That(vm.SetRoutes(routes), Is.Zero);
    }

    private static uint GsiOf(ModelPin pin, int turn) => (pin.Number - FirstPin + Pins - (uint)turn) % Pins;

    private static void CheckCpus(ChipVm vm, Model model, int number)
    {
        foreach (ModelPin pin in model.Pins)
        {
            for (uint cpu = 0; cpu < 2; cpu++)
            {
                bool waits = model.Waiting[cpu].Contains(pin.Vector), serves = model.Serving[cpu].Contains(pin.Vector);
                Assert.That(vm.Cpus.Irr(cpu, pin.Vector), Is.EqualTo(waits), $"IRR after operation {number}");
                Assert.That(vm.Cpus.Isr(cpu, pin.Vector), Is.EqualTo(serves), $"ISR after operation {number}");
            }
        }
    }
}
