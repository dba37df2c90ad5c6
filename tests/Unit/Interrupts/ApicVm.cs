// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Mmu;
using SharpKvm.Tests.Cpu;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;
using Lapics = SharpKvm.Interrupts.Apic<SharpKvm.Tests.Cpu.FakeVendor>;
using Timers = SharpKvm.Interrupts.ApicTimer<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Interrupts;

/// <summary>A VM whose vCPUs have local APICs, enabled by software unless a test says otherwise.</summary>
internal sealed class ApicVm : IDisposable
{
    public const uint SvrEnabled = 0x1ff;
    public const uint Masked = 1 << 16;
    private const uint FirstMsr = 0x800;

    private readonly SimulatedVm _machine;
    private readonly Dictionary<uint, nint> _vcpus = [];

    public ApicVm(params ReadOnlySpan<uint> ids)
    {
        Host = new SimulatedHost();
        TestVcpu.FillCpuid(Host.Cpu);
        _machine = new SimulatedVm(Host);
        Assert.That(VmMemory.Init(ref Vm, 48), Is.Zero);
        Vm.Irqchip.Mode = IrqchipMode.Kernel;
        foreach (uint id in ids)
            Add(id);
    }

    public SimulatedHost Host { get; }
    public SimulatedVm Machine => _machine;
    public ref SharpKvm.Vm.Vm Vm => ref _machine.Vm;
    public IEnumerable<uint> Ids => _vcpus.Keys;

    public ref Vcpu this[uint id] => ref new KernelRef<Vcpu>(_vcpus[id]).Value;

    /// <summary>KVM_CREATE_VCPU.</summary>
    public void Add(uint id)
    {
        KernelRef<Vcpu> self = new(Host.AllocateBlock((nuint)Unsafe.SizeOf<Vcpu>()));
        _vcpus.Add(id, self.Address);
        ref Vcpu vcpu = ref self.Value;
        vcpu.Id = id;
        vcpu.VmRef = _machine.Ref;
        vcpu.Shared.Host = new HostVcpu((nint)id + 1);
        Assert.That(vcpu.Apic.Create(), Is.Zero);
        Assert.That(FakeVendor.CreateVcpu(ref vcpu), Is.Zero);
        Reset<FakeVendor>.PowerOn(ref vcpu);
        Lapics.Reset(ref vcpu);
        Vm.Vcpus.Add(id, self);
        Write(id, ApicRegister.Svr, SvrEnabled);
        Host.Thread.Kicks.Clear();
    }

    /// <summary>Registers as the page in xAPIC mode has them; in the other modes a look behind the scenes.</summary>
    public uint Read(uint id, int register)
    {
        Span<byte> data = stackalloc byte[4];
        Lapics.Read(ref this[id], (uint)register * 16, data);
        return BitConverter.ToUInt32(data);
    }

    public void Write(uint id, int register, uint value) =>
        Lapics.Write(ref this[id], (uint)register * 16, BitConverter.GetBytes(value));

    public bool TryReadMsr(uint id, int register, out ulong value) =>
        Lapics.TryReadMsr(ref this[id], FirstMsr + (uint)register, out value);

    public bool TryWriteMsr(uint id, int register, ulong value) =>
        Lapics.TryWriteMsr(ref this[id], FirstMsr + (uint)register, value);

    /// <summary>A write that must succeed.</summary>
    public void WriteMsr(uint id, int register, ulong value) =>
        Assert.That(TryWriteMsr(id, register, value), Is.True, $"WRMSR {register:x}");

    public ulong ReadMsr(uint id, int register)
    {
        Assert.That(TryReadMsr(id, register, out ulong value), Is.True, $"RDMSR {register:x}");
        return value;
    }

    /// <summary>WRMSR of IA32_APIC_BASE that keeps all but the mode.</summary>
    public bool TrySetMode(uint id, ApicMode mode, bool host = false) =>
        Lapics.TrySetBase(ref this[id], this[id].Msrs.ApicBase & ~0xc00ul | (ulong)mode << 10, host);

    public void EnterX2apic(params ReadOnlySpan<uint> ids)
    {
        foreach (uint id in ids)
            Assert.That(TrySetMode(id, ApicMode.X2apic), Is.True);
    }

    public bool Irr(uint id, byte vector) => Bit(id, ApicRegister.Irr, vector);
    public bool Isr(uint id, byte vector) => Bit(id, ApicRegister.Isr, vector);
    public bool Tmr(uint id, byte vector) => Bit(id, ApicRegister.Tmr, vector);

    /// <summary>A message that comes from a chip.</summary>
    public int Send(
        uint destination, byte vector, DeliveryMode mode = DeliveryMode.Fixed, bool logical = false, bool level = false,
        bool wide = false) =>
        ApicBus.Send(ref Vm, new()
        {
            Destination = destination, Vector = new Vector(vector), Mode = mode, Logical = logical, Level = level,
            Wide = wide,
        });

    /// <summary>The vCPUs that have a vector in IRR, which is cleared.</summary>
    public uint[] Receivers(byte vector)
    {
        List<uint> receivers = [];
        foreach (uint id in Ids.Order())
        {
            if (!Irr(id, vector))
                continue;
            receivers.Add(id);
            this[id].Apic.Registers[ApicRegister.Irr + vector / 32] &= ~(1u << vector % 32);
        }
        return [.. receivers];
    }

    /// <summary>What the run loop does when the guest can take an interrupt: its vector, or -1.</summary>
    public int Take(uint id)
    {
        int vector = this[id].Apic.HighestPending();
        if (vector >= 0)
            this[id].Apic.Accept((byte)vector);
        return vector;
    }

    public VcpuRequests TakeRequests(uint id) =>
        (VcpuRequests)Interlocked.Exchange(ref this[id].Shared.RequestBits, 0);

    /// <summary>The vCPUs that were kicked since the last call, each as often as it was.</summary>
    public uint[] TakeKicks()
    {
        uint[] kicks = [.. Host.Thread.Kicks.Select(handle => (uint)handle - 1)];
        Host.Thread.Kicks.Clear();
        return kicks;
    }

    /// <summary>When a vCPU's timer is to expire, from now; null when it is not armed.</summary>
    public ulong? TimeLeft(uint id) =>
        Host.Thread.Timers.GetValueOrDefault((nint)id + 1) is > 0 and ulong deadline
            ? deadline - Math.Min(deadline, Host.Cpu.Nanoseconds)
            : null;

    /// <summary>Lets time pass; timers expire on the way, and their vCPUs see to it. Returns how often.</summary>
    public int Advance(ulong nanoseconds)
    {
        ulong end = Host.Cpu.Nanoseconds + nanoseconds;
        int expirations = 0;
        while (true)
        {
            var (handle, deadline) = Host.Thread.Timers.Where(timer => timer.Value != 0 && timer.Value <= end)
                .OrderBy(timer => timer.Value).FirstOrDefault();
            Pass(Math.Max(handle == 0 ? end : deadline, Host.Cpu.Nanoseconds));
            if (handle == 0)
                return expirations;
            Host.Thread.Timers[handle] = 0;
            Timers.Expired(ref this[(uint)handle - 1]);
            expirations++;
        }
    }

    /// <summary>Both clocks go on, but nobody looks at the timers.</summary>
    public void Pass(ulong until)
    {
        Host.Cpu.Tsc += (until - Host.Cpu.Nanoseconds) * Host.Cpu.TscKhz / 1_000_000;
        Host.Cpu.Nanoseconds = until;
    }

    public kvm_lapic_state Get(uint id)
    {
        Lapics.Get(ref this[id], out kvm_lapic_state state);
        return state;
    }

    public int Set(uint id, in kvm_lapic_state state) => Lapics.Set(ref this[id], in state);

    public void Dispose()
    {
        foreach ((uint id, nint block) in _vcpus)
        {
            this[id].Cpuid.Free();
            this[id].Apic.Free();
            FakeVendor.DestroyVcpu(ref this[id]);
            Host.FreeBlock(block);
        }
        VmMemory.Destroy(ref Vm);
        Host.AssertNothingInUse();
        Host.Dispose();
    }

    private bool Bit(uint id, int set, byte vector) => (Read(id, set + vector / 32) >> vector % 32 & 1) != 0;
}
