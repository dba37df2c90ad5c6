// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using NUnit.Framework;
using SharpKvm.Interrupts;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Interrupts;

/// <summary>A VM with interrupt controllers made as user space makes them, and vCPUs with local APICs.</summary>
internal sealed class ChipVm : IDisposable
{
    public const ulong Argument = 0x10_0000, ArgumentPages = 64, Nowhere = 0x80_0000;
    public const ulong SplitPins = 24;

    public ChipVm(IrqchipMode mode, params ReadOnlySpan<uint> ids)
    {
        Vm.Irqchip.Mode = IrqchipMode.None;
        Host.Process.Map(Argument, ArgumentPages);
        if (mode == IrqchipMode.Kernel)
            Assert.That(Ioctl(KVM_CREATE_IRQCHIP), Is.Zero);
        else if (mode == IrqchipMode.Split)
            Assert.That(IrqChip.Split(ref Vm, SplitPins), Is.Zero);
        foreach (uint id in ids)
            Cpus.Add(id);
    }

    public ApicVm Cpus { get; } = new();
    public SimulatedHost Host => Cpus.Host;
    public SimulatedVm Machine => Cpus.Machine;
    public ref SharpKvm.Vm.Vm Vm => ref Cpus.Vm;

    public long Ioctl(uint command, ulong argument = 0) => VmIoctls.Dispatch(ref Vm, command, argument);

    public long Set<T>(uint command, in T value) where T : unmanaged
    {
        Put(0, in value);
        return Ioctl(command, Argument);
    }

    public T Get<T>(uint command, in T argument = default) where T : unmanaged
    {
        Assert.That(Set(command, in argument), Is.Zero);
        Assert.That(UserMemory.TryRead(new Hva(Argument), out T value), Is.True);
        return value;
    }

    public static void Put<T>(ulong offset, in T value) where T : unmanaged =>
        Assert.That(UserMemory.TryWrite(new Hva(Argument + offset), value), Is.True);

    /// <summary>KVM_SET_GSI_ROUTING.</summary>
    public long SetRoutes(params ReadOnlySpan<kvm_irq_routing_entry> entries)
    {
        PutRoutes(entries);
        return Ioctl(KVM_SET_GSI_ROUTING, Argument);
    }

    public static void PutRoutes(ReadOnlySpan<kvm_irq_routing_entry> entries)
    {
        Put(0, new kvm_irq_routing { nr = (uint)entries.Length });
        for (int i = 0; i < entries.Length; i++)
            Put(EntryOffset(i), in entries[i]);
    }

    public static ulong EntryOffset(int index) => 8 + (ulong)index * (ulong)Unsafe.SizeOf<kvm_irq_routing_entry>();

    public static kvm_irq_routing_entry Pin(uint gsi, uint chip, uint pin)
    {
        kvm_irq_routing_entry entry = new() { gsi = gsi, type = kvm_irq_routing_entry.KVM_IRQ_ROUTING_IRQCHIP };
        entry.u.irqchip = new() { irqchip = chip, pin = pin };
        return entry;
    }

    public static kvm_irq_routing_entry Msi(
        uint gsi, byte vector, uint destination = 0, bool level = false, uint high = 0)
    {
        kvm_irq_routing_entry entry = new() { gsi = gsi, type = kvm_irq_routing_entry.KVM_IRQ_ROUTING_MSI };
        entry.u.msi = new()
        {
            address_lo = 0xfee0_0000 | destination << 12, address_hi = high, data = vector | (level ? 0xc000u : 0),
        };
        return entry;
    }

    /// <summary>KVM_IRQ_LINE_STATUS's status.</summary>
    public int Line(uint gsi, bool level) =>
        Get(KVM_IRQ_LINE_STATUS, new kvm_irq_level { irq = gsi, level = level ? 1u : 0 }).status;

    /// <summary>An entry of the IOAPIC, as the guest writes it.</summary>
    public void Program(uint pin, byte vector, uint destination = 0, bool level = false, bool masked = false)
    {
        WriteEntry(pin * 2 + 1, destination << 24);
        WriteEntry(pin * 2, vector | (level ? 1u << 15 : 0) | (masked ? 1u << 16 : 0));
    }

    private void WriteEntry(uint word, uint value)
    {
        IrqChip.WriteIoApic(ref Vm, 0, 0x10 + word);
        IrqChip.WriteIoApic(ref Vm, 0x10, value);
    }

    public kvm_ioapic_state IoApic =>
        Get(KVM_GET_IRQCHIP, new kvm_irqchip { chip_id = kvm_irqchip.KVM_IRQCHIP_IOAPIC }).chip.ioapic;

    public kvm_pic_state Pic(uint chip) => Get(KVM_GET_IRQCHIP, new kvm_irqchip { chip_id = chip }).chip.pic;

    public void Out(ushort port, byte value) =>
        Assert.That(IrqChip.TryAccessPort(ref Vm, true, port, ref value), Is.True);

    /// <summary>Initializes both PICs: vectors from 0x20 and 0x28, nothing masked.</summary>
    public void InitializePics()
    {
        foreach (ushort port in (ushort[])[0x20, 0xa0])
        {
            Out(port, 0x11);
            Out((ushort)(port + 1), port == 0x20 ? (byte)0x20 : (byte)0x28);
            Out((ushort)(port + 1), port == 0x20 ? (byte)4 : (byte)2);
            Out((ushort)(port + 1), 1);
            Out((ushort)(port + 1), 0);
        }
    }

    public static Gsi Global(uint value)
    {
        Assert.That(Gsi.TryCreate(value, out Gsi gsi), Is.True);
        return gsi;
    }

    /// <summary>An irqfd is signalled.</summary>
    public void Trigger(uint gsi, bool resample = false) => IrqChip.Trigger(ref Vm, Global(gsi), resample);

    public void Eoi(uint id) => Cpus.Write(id, ApicRegister.Eoi, 0);

    /// <summary>The CPU takes this vector and ends it.</summary>
    public void Serve(uint id, byte vector)
    {
        Assert.That(Cpus.Take(id), Is.EqualTo(vector));
        Eoi(id);
    }

    /// <summary>Time passes until the chips' timer expires.</summary>
    public void Expire()
    {
        Assert.That(Machine.ChipTimer, Is.Not.Zero, "the chips' timer is armed");
        Host.Cpu.Nanoseconds = Math.Max(Host.Cpu.Nanoseconds, Machine.ChipTimer);
        IrqChip.TimerExpired(ref Vm);
    }

    public void Dispose()
    {
        Vm.Irqchip.Destroy();
        Cpus.Dispose();
    }
}
