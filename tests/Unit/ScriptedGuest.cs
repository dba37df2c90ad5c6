// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Iced.Intel;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Mmu;
using SharpKvm.Tests.Cpu;
using SharpKvm.Tests.Host;
using SharpKvm.Tests.Mmu;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests;

/// <summary>
/// A vCPU with 64 KiB of memory at guest address 0, in flat 32-bit protected mode without paging, at
/// <see cref="Code"/>. Its processor plays a script.
/// </summary>
internal abstract class ScriptedGuest<TVendor, TTurn, TBlock> : IDisposable
    where TVendor : struct, IVendor where TTurn : class
{
    public const ulong Code = 0x1000;
    /// <summary>Where nothing is: an access there is MMIO.</summary>
    public const ulong Device = 0xd000_0000;
    /// <summary>Where <see cref="AddRom"/> puts its page.</summary>
    public const ulong Rom = 0xf000_0000;
    public const ulong MemoryPages = 16;
    public const ulong SplitPins = 24;
    private const ulong Tables = 0x8000;
    private const uint SvrEnabled = 0x1ff;
    private const ushort FlatCode = 0xc9b, FlatData = 0xc93, Code64 = 0xa9b;

    private readonly nint _block;
    private readonly TestMemory _memory;

    /// <param name="host">The host.</param>
    /// <param name="probed">What the vendor's probe of that said.</param>
    /// <param name="id">The vCPU's; 0 is the boot processor.</param>
    /// <param name="mode">Other than none: its local APIC is enabled by software.</param>
    /// <param name="shadow">Without nested paging.</param>
    protected ScriptedGuest(SimulatedHost host, int probed, uint id, IrqchipMode mode, bool shadow = false)
    {
        Host = host;
        Assert.That(probed, Is.EqualTo(Errno.Ok));
        Host.Process.Map(TestVcpu.Argument, TestVcpu.ArgumentPages);
        SimulatedVm machine = new(Host);
        Assert.That(VmMemory.Init(ref machine.Vm, 48), Is.EqualTo(Errno.Ok));
        if (shadow)
            Assert.That(machine.Vm.Memory.Shadow.Create(64), Is.EqualTo(Errno.Ok));
        _memory = new TestMemory(Host, machine);
        _memory.AddMemory(0, 0, MemoryPages);
        if (mode != IrqchipMode.None)
            Assert.That(mode == IrqchipMode.Kernel ? IrqChip.Create(ref Vm)
                : IrqChip.Split(ref Vm, SplitPins), Is.Zero);

        _block = Host.AllocateBlock((nuint)Unsafe.SizeOf<Vcpu>());
        Vcpu.Shared.Host = new HostVcpu((nint)id + 1);
        Vcpu.Shared.Run = new(Host.AllocateBlock(Page.Size));
        Vcpu.Shared.Port = new(Host.AllocateBlock(Page.Size));
        Vcpu.VmRef = machine.Ref;
        Vcpu.Id = id;
        Assert.That(Vcpu.Apic.Create(), Is.EqualTo(Errno.Ok));
        Assert.That(TVendor.CreateVcpu(ref Vcpu), Is.EqualTo(Errno.Ok));
        Reset<TVendor>.PowerOn(ref Vcpu);
        Put(new kvm_cpuid2 { nent = CpuidTable.MaxEntries });
        Assert.That(SystemIoctls.Dispatch(KVM_GET_SUPPORTED_CPUID, TestVcpu.Argument), Is.EqualTo(Errno.Ok));
        Assert.That(Ioctl(KVM_SET_CPUID2, TestVcpu.Argument), Is.Zero);
        EnterFlatMode();
        if (mode != IrqchipMode.None)
        {
            Vm.Vcpus.Add(id, new KernelRef<Vcpu>(_block));
            Apic<TVendor>.Write(ref Vcpu, ApicRegister.Svr * 16, BitConverter.GetBytes(SvrEnabled));
        }
    }

    public SimulatedHost Host { get; }
    public abstract ScriptedProcessor<TTurn, TBlock> Processor { get; }
    public List<TBlock> Entries => Processor.Entries;
    public ref Vcpu Vcpu => ref new KernelRef<Vcpu>(_block).Value;
    public ref SharpKvm.Vm.Vm Vm => ref _memory.Vm;
    public ref GuestRegisters Registers => ref Vcpu.Registers;
    public ref kvm_run RunPage => ref Vcpu.Run;
    public Span<byte> RunPageBytes => MemoryMarshal.AsBytes(new Span<kvm_run>(ref RunPage));
    public Span<byte> Port => Vcpu.Shared.Port.Value;

    /// <summary>Assembles code at RIP.</summary>
    public void Assemble(Action<Assembler> code)
    {
        bool wide = (Vcpu.Efer & Efer.Lma) != 0;
        Assembler assembler = new(wide ? 64 : 32);
        code(assembler);
        using MemoryStream stream = new();
        assembler.Assemble(new StreamCodeWriter(stream), Registers.Rip);
        Write(Registers.Rip, stream.ToArray());
    }

    public void Write(ulong address, ReadOnlySpan<byte> bytes) =>
        Assert.That(GuestMemory.Write(ref Vm, new Gpa(address), bytes), Is.EqualTo(MemoryAccess.Done));

    /// <summary>A slot with KVM_MEM_READONLY and these contents.</summary>
    public void AddRom(ReadOnlySpan<byte> contents)
    {
        _memory.AddMemory(1, Rom >> Page.Shift, 1, kvm_userspace_memory_region.KVM_MEM_READONLY);
        Assert.That(UserMemory.Write(new Hva(TestMemory.UserAddress(1, 0)), contents), Is.True);
    }

    /// <summary>Switches the logging of writes to its memory on.</summary>
    public void LogWrites() => Assert.That(_memory.SetRegion(0, 0, MemoryPages, TestMemory.UserAddress(0, 0),
        kvm_userspace_memory_region.KVM_MEM_LOG_DIRTY_PAGES), Is.EqualTo(Errno.Ok));

    /// <summary>A slot of one page whose writes are logged; its id is 2.</summary>
    public void AddLogged(ulong address) =>
        _memory.AddMemory(2, address >> Page.Shift, 1, kvm_userspace_memory_region.KVM_MEM_LOG_DIRTY_PAGES);

    /// <summary>Which of a slot's pages the log has.</summary>
    public ulong Written(uint slot = 0) => Vm.Memory.SlotById(slot).DirtyBitmap.Span[0];

    public T Read<T>(ulong address) where T : unmanaged
    {
        Assert.That(GuestMemory.TryRead(ref Vm, new Gpa(address), out T value), Is.True);
        return value;
    }

    /// <summary>KVM_RUN with these turns ahead of the guest.</summary>
    public int Run(params ReadOnlySpan<TTurn> turns)
    {
        Processor.Add(turns);
        return RunLoop<TVendor>.Run(ref Vcpu);
    }

    /// <summary>KVM_RUN that must leave for user space with this reason.</summary>
    public void RunTo(Exit reason, params ReadOnlySpan<TTurn> turns)
    {
        Assert.That(Run(turns), Is.Zero, "KVM_RUN");
        Assert.That(RunPage.exit_reason, Is.EqualTo(reason));
    }

    /// <summary>KVM_RUN until the script is over: nothing in it is user space's business.</summary>
    public void RunThrough(params ReadOnlySpan<TTurn> turns)
    {
        int result = Run(turns);
        Assert.That(result, Is.EqualTo(Errno.EINTR), $"KVM_RUN; exit reason {RunPage.exit_reason}");
    }

    public long Ioctl(uint command, ulong argument = 0) =>
        VcpuIoctls<TVendor>.Dispatch(ref Vcpu, command, argument);

    public long Set<T>(uint command, in T value) where T : unmanaged
    {
        Put(in value);
        return Ioctl(command, TestVcpu.Argument);
    }

    public T Get<T>(uint command) where T : unmanaged
    {
        Assert.That(Ioctl(command, TestVcpu.Argument), Is.Zero);
        Assert.That(UserMemory.TryRead(new Hva(TestVcpu.Argument), out T value), Is.True);
        return value;
    }

    public void PutArgument(ReadOnlySpan<byte> bytes) =>
        Assert.That(UserMemory.Write(new Hva(TestVcpu.Argument), bytes), Is.True);

    public void Interrupt(byte vector) =>
        Assert.That(Set(KVM_INTERRUPT, (uint)vector), Is.Zero);

    public void Nmi() => Assert.That(Ioctl(KVM_NMI), Is.Zero);

    /// <summary>KVM_SET_GUEST_DEBUG.</summary>
    public void Debug(uint control) =>
        Assert.That(Set(KVM_SET_GUEST_DEBUG, new kvm_guest_debug { control = control }), Is.Zero);

    /// <summary>Puts 64-bit mode with an identity map of the first 4 GiB below the guest.</summary>
    public void EnterLongMode()
    {
        const ulong Entry = 7, Large = 0x87, TablePage = Page.Size;
        Put(Tables, (Tables + TablePage) | Entry);
        for (ulong gib = 0; gib < 4; gib++)
        {
            Put(Tables + TablePage + 8 * gib, (Tables + (2 + gib) * TablePage) | Entry);
            for (ulong page = 0; page < 512; page++)
                Put(Tables + (2 + gib) * TablePage + 8 * page, gib << 30 | page << 21 | Large);
        }
        TVendor.SetCr4(ref Vcpu, Cr4.Pae);
        TVendor.SetCr3(ref Vcpu, Tables);
        TVendor.SetEfer(ref Vcpu, Efer.Lme | Efer.Lma | Efer.Sce);
        TVendor.SetCr0(ref Vcpu, Cr0.Pe | Cr0.Et | Cr0.Pg);
        SetSegment(SegmentName.Cs, 8, Code64);

        void Put(ulong address, ulong value) => Write(address, BitConverter.GetBytes(value));
    }

    public void Dispose()
    {
        TVendor.DestroyVcpu(ref Vcpu);
        Vcpu.SpareTables.Free();
        Vcpu.Shadow.Free();
        Vcpu.Cpuid.Free();
        Vcpu.Apic.Free();
        Host.FreeBlock(Vcpu.Shared.Run.Address);
        Host.FreeBlock(Vcpu.Shared.Port.Address);
        Host.FreeBlock(_block);
        ReleaseHardware();
        Vm.IoEventFds.Destroy();
        Vm.MsrFilter.Destroy();
        Vm.Irqchip.Destroy();
        _memory.Destroy();
        Host.Dispose();
    }

    /// <summary>What unloading does for the vendor.</summary>
    protected abstract void ReleaseHardware();

    private void EnterFlatMode()
    {
        TVendor.SetCr0(ref Vcpu, Cr0.Pe | Cr0.Et);
        SetSegment(SegmentName.Cs, 8, FlatCode);
        SetSegment(SegmentName.Es, 16, FlatData);
        SetSegment(SegmentName.Ss, 16, FlatData);
        SetSegment(SegmentName.Ds, 16, FlatData);
        Registers.Rip = Code;
        Registers[Gpr.Rsp] = 0x7000;
        Registers[Gpr.Rdx] = 0;
    }

    private void SetSegment(SegmentName name, ushort selector, ushort attributes) =>
        TVendor.SetSegment(ref Vcpu, name,
            new() { Selector = selector, Attributes = attributes, Limit = uint.MaxValue });

    private static void Put<T>(in T value) where T : unmanaged =>
        Assert.That(UserMemory.TryWrite(new Hva(TestVcpu.Argument), value), Is.True);
}
