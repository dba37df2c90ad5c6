// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using Lapics = SharpKvm.Interrupts.Apic<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Interrupts;

/// <summary>Several CPUs do what they like with their APICs; after each step all look as the model says.</summary>
[TestFixture]
internal sealed class ApicModelTests
{
    private static readonly uint[] s_ids = [0, 1, 6, 17, 255];

    private enum Operation
    {
        Ipi, OwnIpi, Chip, Take, End, TaskPriority, Enable, LogicalId, Format, Mode, ReadErrors, ErrorEntry, Init,
        GetAndSet,
    }

    private static readonly Gen<byte> s_vector = Gen.OneOf(
        Gen.OneOfConst<byte>(0, 15, 16, 0x31, 0x3f, 0x40, 0xfe, 0xff), Gen.Byte);

    private static readonly Gen<InterruptMessage> s_message = Gen.Select(
        Gen.OneOf(Gen.OneOfConst(s_ids), Gen.OneOfConst(0xffu, 0xffffffffu, 0x10002u, 0x1ffffu, 0x43u),
            Gen.UInt[0, 255]),
        Gen.Bool, Gen.OneOf(Gen.OneOfConst(DeliveryMode.Fixed, DeliveryMode.LowestPriority), Gen.Enum<DeliveryMode>()),
        Gen.Bool, s_vector, Gen.OneOf(Gen.Const(Shorthand.None), Gen.Enum<Shorthand>()),
        (destination, logical, mode, level, vector, shorthand) => new InterruptMessage
        {
            Destination = destination, Logical = logical, Mode = mode, Level = level, Vector = new Vector(vector),
            Shorthand = shorthand,
        });

    private static readonly Gen<(Operation, uint Cpu, uint Value, InterruptMessage)[]> s_operations = Gen.Select(
        Gen.OneOf(Gen.OneOfConst(Operation.Ipi, Operation.Chip, Operation.Take, Operation.End), Gen.Enum<Operation>()),
        Gen.OneOfConst(s_ids), Gen.UInt, s_message).Array[1, 150];

    [Test]
    public void AgreesWithThePlainModel()
    {
        int delivered = 0, taken = 0;
        for (uint seed = 0; seed < 300; seed++)
        {
            var operations = s_operations.Generate(new PCG(7, seed), null, out _);
            using ApicVm vm = new(s_ids);
            ApicModel model = new(s_ids) { NoBroadcastQuirk = seed % 2 != 0 };
            vm.Vm.Irqchip.NoBroadcastQuirk = model.NoBroadcastQuirk;
            for (int step = 0; step < operations.Length; step++)
            {
                (Operation operation, uint cpu, uint value, InterruptMessage message) = operations[step];
                int result = Perform(vm, model, operation, cpu, value, message);
                delivered += operation == Operation.Chip ? result : 0;
                taken += operation == Operation.Take && result >= 0 ? 1 : 0;
                Compare(vm, model, $"seed {seed}, step {step}: {operation} of {cpu}, {value:x}");
            }
        }
        Assert.That(delivered, Is.GreaterThan(1000));
        Assert.That(taken, Is.GreaterThan(1000));
    }

    private static int Perform(
        ApicVm vm, ApicModel model, Operation operation, uint id, uint value, InterruptMessage message)
    {
        ApicModel.Cpu cpu = model[id];
        bool isX2 = cpu.Mode == ApicMode.X2apic;
        int result = 0;
        if (operation == Operation.Chip)
        {
            message.Shorthand = Shorthand.None;
            message.Wide = message.Destination > 0xff;
            result = ApicBus.Send(ref vm.Vm, in message);
            Assert.That(result, Is.EqualTo(model.Send(message, null)));
        }
        else if (operation == Operation.Mode)
        {
            var mode = (ApicMode)(value % 4);
            bool done = vm.TrySetMode(id, mode);
            Assert.That(done, Is.EqualTo(mode == cpu.Mode || (cpu.Mode, mode) is (ApicMode.Disabled, ApicMode.Xapic)
                or (ApicMode.Xapic, ApicMode.X2apic or ApicMode.Disabled) or (ApicMode.X2apic, ApicMode.Disabled)));
            if (done && mode == ApicMode.Disabled && cpu.Mode != mode)
                cpu.Reset();
            cpu.Mode = done ? mode : cpu.Mode;
        }
        else if (operation == Operation.Init)
        {
            Lapics.Reset(ref vm[id]);
            cpu.Reset();
        }
        else if (operation == Operation.GetAndSet)
        {
            Assert.That(vm.Set(id, vm.Get(id)), Is.Zero);
            cpu.Requests |= VcpuRequests.Event;
        }
        else if (operation == Operation.Take)
        {
            result = vm.Take(id);
            Assert.That(result, Is.EqualTo(cpu.Take()));
        }
        else if (cpu.Mode != ApicMode.Disabled)
        {
            Write(vm, model, operation, cpu, value, message);
        }
        return result;

        void Write(
            ApicVm vm, ApicModel model, Operation operation, ApicModel.Cpu cpu, uint value, InterruptMessage message)
        {
            switch (operation)
            {
                case Operation.Ipi:
                    message.Wide = isX2;
                    message.Level = false;
                    message.Destination &= isX2 ? ~0u : 0xff;
                    SendIpi(message);
                    break;
                case Operation.OwnIpi when isX2:
                    vm.WriteMsr(id, ApicRegister.SelfIpi, message.Vector.Value);
                    model.SendIpi(id, new() { Shorthand = Shorthand.Self, Vector = message.Vector });
                    break;
                case Operation.OwnIpi:
                    SendIpi(new() { Destination = id, Vector = message.Vector });
                    break;
                case Operation.End:
                    Put(ApicRegister.Eoi, 0);
                    cpu.End();
                    break;
                case Operation.TaskPriority:
                    Put(ApicRegister.Tpr, (byte)value);
                    cpu.Tpr = (byte)value;
                    break;
                case Operation.Enable:
                    Put(ApicRegister.Svr, value % 4 != 0 ? 0x1ffu : 0xff);
                    cpu.SetEnabled(value % 4 != 0);
                    break;
                case Operation.LogicalId when !isX2:
                    Put(ApicRegister.Ldr, (value % 2 == 0 ? 0x43u : value >> 24) << 24);
                    cpu.LogicalId = (byte)(value % 2 == 0 ? 0x43u : value >> 24);
                    break;
                case Operation.Format when !isX2:
                    cpu.Format = (byte)(value % 3 == 0 ? 0xf : value % 3 == 1 ? 0 : 7);
                    Put(ApicRegister.Dfr, (uint)cpu.Format << 28);
                    break;
                case Operation.ReadErrors:
                    Put(ApicRegister.Esr, 0);
                    cpu.ReadErrors();
                    break;
                case Operation.ErrorEntry:
                    Put(ApicRegister.LvtError, message.Vector.Value | (value % 4 == 0 ? ApicVm.Masked : 0));
                    cpu.ErrorVector = message.Vector.Value;
                    cpu.ErrorMasked = value % 4 == 0 || !cpu.Enabled;
                    break;
            }
        }

        void Put(int register, uint value)
        {
            if (isX2)
                vm.WriteMsr(id, register, value);
            else
                vm.Write(id, register, value);
        }

        void SendIpi(InterruptMessage message)
        {
            uint icr = message.Vector.Value | (uint)message.Mode << 8 | (message.Logical ? 1u << 11 : 0)
                | (uint)message.Shorthand << 18;
            if (isX2)
            {
                vm.WriteMsr(id, ApicRegister.Icr, (ulong)message.Destination << 32 | icr);
            }
            else
            {
                vm.Write(id, ApicRegister.IcrHigh, message.Destination << 24);
                vm.Write(id, ApicRegister.Icr, icr);
            }
            model.SendIpi(id, message);
        }
    }

    private static void Compare(ApicVm vm, ApicModel model, string step)
    {
        uint[] kicks = vm.TakeKicks();
        if (!kicks.Order().SequenceEqual(model.Kicks.Order()))
            Assert.Fail($"{step}: kicks {string.Join(' ', kicks)}, not {string.Join(' ', model.Kicks)}");
        model.Kicks.Clear();
        foreach (uint id in s_ids)
        {
            ApicModel.Cpu cpu = model[id];
            ref Lapic apic = ref vm[id].Apic;
            Check("requests", (uint)vm[id].Shared.Requests, (uint)cpu.Requests);
            // Start-up after INIT must find an empty slate only now and then.
            if (id % 2 == 0)
            {
                vm.TakeRequests(id);
                cpu.Requests = VcpuRequests.None;
            }
            Check("TPR", apic.Registers[ApicRegister.Tpr], cpu.Tpr);
            Check("PPR", apic.Registers[ApicRegister.Ppr], cpu.Ppr);
            Check("LDR", apic.Registers[ApicRegister.Ldr], cpu.Ldr);
            Check("ESR", apic.Registers[ApicRegister.Esr], cpu.ErrorStatus);
            Check("SVR", apic.Registers[ApicRegister.Svr], cpu.Enabled ? 0x1ffu : 0xff);
            Check("error entry", apic.Registers[ApicRegister.LvtError],
                cpu.ErrorVector | (cpu.ErrorMasked ? ApicVm.Masked : 0));
            Check("pending", (uint)apic.HighestPending(), (uint)cpu.Pending);
            for (int word = 0; word < 8; word++)
            {
                Check("IRR", apic.Registers[ApicRegister.Irr + word], Word(cpu.Irr, word));
                Check("ISR", apic.Registers[ApicRegister.Isr + word], Word(cpu.Isr, word));
                Check("TMR", apic.Registers[ApicRegister.Tmr + word], Word(cpu.Tmr, word));
            }

            void Check(string what, uint actual, uint expected)
            {
                if (actual != expected)
                    Assert.Fail($"{step}: {what} of {id} is {actual:x}, not {expected:x}");
            }
        }
    }

    private static uint Word(bool[] vectors, int word)
    {
        uint value = 0;
        for (int bit = 0; bit < 32; bit++)
            value |= vectors[word * 32 + bit] ? 1u << bit : 0;
        return value;
    }
}
