// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;

namespace SharpKvm.Tests.Mmu;

/// <summary>A host with one VM whose memory is ready: where each test of this room begins.</summary>
internal sealed class TestMemory : IDisposable
{
    public const ulong UserBase = 0x7f00_0000_0000;
    public const int PhysicalBits = 48;

    public TestMemory()
    {
        Host = new SimulatedHost();
        Machine = new SimulatedVm(Host);
        VcpuRef = Machine.MakeVcpu(0);
        Assert.That(VmMemory.Init(ref Vm, PhysicalBits), Is.EqualTo(Errno.Ok));
    }

    /// <summary>Around a VM that the test has made itself.</summary>
    public TestMemory(SimulatedHost host, SimulatedVm machine) =>
        (Host, Machine, VcpuRef) = (host, machine, machine.MakeVcpu(0));

    public SimulatedHost Host { get; }
    public SimulatedVm Machine { get; }
    public SimulatedProcess Process => Host.Process;
    public ref SharpKvm.Vm.Vm Vm => ref Machine.Vm;

    /// <summary>The vCPU that accesses the memory.</summary>
    public ref Vcpu Vcpu => ref VcpuRef.Value;
    public KernelRef<Vcpu> VcpuRef { get; }
    /// <summary>Its pages for tables.</summary>
    public ref TablePool Spare => ref Vcpu.SpareTables;

    /// <summary>KVM_SET_USER_MEMORY_REGION in units of pages.</summary>
    public int SetRegion(uint slot, ulong firstFrame, ulong pages, ulong user, uint flags = 0) =>
        MemorySlots.SetRegion(ref Vm, new kvm_userspace_memory_region
        {
            slot = slot,
            flags = flags,
            guest_phys_addr = firstFrame << Page.Shift,
            memory_size = pages << Page.Shift,
            userspace_addr = user,
        });

    /// <summary>A slot with fresh memory of the process behind it.</summary>
    public void AddMemory(uint slot, ulong firstFrame, ulong pages, uint flags = 0)
    {
        ulong user = UserAddress(slot, 0);
        Process.Map(user, pages);
        Assert.That(SetRegion(slot, firstFrame, pages, user, flags), Is.EqualTo(Errno.Ok));
    }

    /// <summary>Where <see cref="AddMemory"/> puts a slot's memory.</summary>
    public static ulong UserAddress(uint slot, ulong page) => UserBase + ((ulong)slot << 32) + (page << Page.Shift);

    public FaultOutcome Fault(ulong frame, bool write, bool present = false) =>
        NestedFault.Handle<Npt>(ref Vcpu, new Gfn(frame).Address, write, present, wait: true);

    /// <summary>
    /// A guest's access as the run loop carries it out: hardware, and the fault handler until hardware is content.
    /// Null when the access ends as anything but a mapped page.
    /// </summary>
    public Pfn? Access(ulong frame, bool write, out FaultOutcome outcome)
    {
        outcome = FaultOutcome.Mapped;
        for (int attempt = 0; attempt < 10; attempt++)
        {
            if (Machine.Access(new Gfn(frame), write) is { } page)
                return page;
            outcome = Fault(frame, write, present: Machine.Access(new Gfn(frame), write: false) != null);
            if (outcome is not (FaultOutcome.Mapped or FaultOutcome.Retry))
                return null;
        }
        throw new AssertionException("the guest makes no progress");
    }

    public int ClearDirtyLog(uint slot, ulong first, uint pages, ulong user) => DirtyLog.Clear(ref Vm,
        new kvm_clear_dirty_log { slot = slot, first_page = first, num_pages = pages, dirty_bitmap = user });

    public int GetDirtyLog(uint slot, ulong user) =>
        DirtyLog.Get(ref Vm, new kvm_dirty_log { slot = slot, dirty_bitmap = user });

    /// <summary>
    /// What must hold at any time: each translation in a TLB or in the nested tables is one of a page that the process
    /// has behind that guest frame, with no more rights; and the tables account for themselves.
    /// </summary>
    public void CheckInvariants()
    {
        foreach ((ulong frame, (Pfn page, bool writable)) in Machine.Tlb)
            CheckMapping(frame, page, writable, hostWritable: false);
        ulong tables = 0;
        ulong mapped = 0;
        Walk(Vm.Memory.Root.Value, 27, 0);
        Assert.That(Vm.Memory.Statistics.TablePages, Is.EqualTo(tables));
        Assert.That(Vm.Memory.Statistics.MappedPages, Is.EqualTo(mapped));
        Assert.That(Host.PagesInUse, Is.EqualTo((int)tables + Spare.Count));

        void Walk(ulong table, int shift, ulong frame)
        {
            tables++;
            ReadOnlySpan<ulong> entries = KernelPages.Entries(new Hpa(table));
            for (int i = 0; i < entries.Length; i++)
            {
                if (entries[i] == 0)
                    continue;
                ulong covered = frame + ((ulong)i << shift);
                ulong target = entries[i] & 0x000f_ffff_ffff_f000;
                if (shift != 0 && (entries[i] & 0x80) == 0)
                {
                    Assert.That(entries[i] ^ target, Is.EqualTo(0x27), "flags of a table");
                    Walk(target, shift - 9, covered);
                    continue;
                }
                // Accessed may be gone, write rights may be missing; bit 52 says that the process has them.
                ulong pages = 1UL << shift;
                Assert.That((entries[i] ^ target) & ~(0x22 | 1UL << 52), Is.EqualTo(shift == 0 ? 0x45 : 0xc5), "flags");
                Assert.That((target >> Page.Shift) % pages, Is.Zero, "alignment");
                mapped += pages;
                for (ulong page = 0; page < pages; page++)
                {
                    CheckMapping(covered + page, new Pfn((target >> Page.Shift) + page), (entries[i] & 2) != 0,
                        (entries[i] & 1UL << 52) != 0);
                }
            }
        }
    }

    private void CheckMapping(ulong frame, Pfn page, bool writable, bool hostWritable)
    {
        Gpa address = new Gfn(frame).Address;
        MemorySlot slot = Vm.Memory.Slots.Find(address);
        Demand(slot.Contains(address), frame, "is mapped without a slot");
        Frame? present = Process.Present(slot.ToHva(address).Value, out bool mayWrite);
        Demand(present?.Number.Value == page.Value, frame, "maps a page that is not its own");
        Demand(!hostWritable || (mayWrite && !slot.IsReadOnly), frame, "counts as writable for the process");
        if (!writable)
            return;
        Demand(mayWrite && !slot.IsReadOnly, frame, "is writable");
        if (slot.LogsDirty)
        {
            ulong index = frame - slot.Start.Frame.Value;
            bool dirty = (slot.DirtyBitmap.Span[(int)(index / 64)] >> (int)(index % 64) & 1) != 0;
            Demand(dirty, frame, "is writable but not logged");
        }

        static void Demand(bool condition, ulong frame, string what)
        {
            if (!condition)
                Assert.Fail($"frame {frame:x} {what}");
        }
    }

    /// <summary>Ends the VM and looks for leaks.</summary>
    public void Destroy()
    {
        Machine.FlushTlbs();
        Spare.Free();
        VmMemory.Destroy(ref Vm);
        Host.AssertNothingInUse();
    }

    public void Dispose() => Host.Dispose();
}
