// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Abi;
using SharpKvm.Host;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;

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
        Assert.That(VmMemory.Init(ref Vm, PhysicalBits), Is.EqualTo(Errno.Ok));
    }

    /// <summary>Around a VM that the test has made itself.</summary>
    public TestMemory(SimulatedHost host, SimulatedVm machine) => (Host, Machine) = (host, machine);

    public SimulatedHost Host { get; }
    public SimulatedVm Machine { get; }
    public SimulatedProcess Process => Host.Process;
    public ref SharpKvm.Vm.Vm Vm => ref Machine.Vm;

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

    public FaultOutcome Fault(ulong frame, bool write) =>
        NestedFault.Handle<Npt>(ref Vm, new Gfn(frame).Address, write, wait: true);

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
            outcome = Fault(frame, write);
            if (outcome is not (FaultOutcome.Mapped or FaultOutcome.Retry))
                return null;
        }
        throw new AssertionException("the guest makes no progress");
    }

    public int GetDirtyLog(uint slot, ulong user) =>
        DirtyLog.Get(ref Vm, new kvm_dirty_log { slot = slot, dirty_bitmap = user });

    /// <summary>
    /// What must hold at any time: each translation in a TLB or in the nested tables is one of a page that the process
    /// has behind that guest frame, with no more rights; and the tables account for themselves.
    /// </summary>
    public void CheckInvariants()
    {
        foreach ((ulong frame, (Pfn page, bool writable)) in Machine.Tlb)
            CheckMapping(frame, page, writable);
        ulong tables = 0;
        ulong mapped = 0;
        Walk(Vm.Memory.Root.Value, 27, 0);
        Assert.That(Vm.Memory.Statistics.TablePages, Is.EqualTo(tables));
        Assert.That(Vm.Memory.Statistics.MappedPages, Is.EqualTo(mapped));
        Assert.That(Host.PagesInUse, Is.EqualTo((int)tables + Vm.Memory.Spare.Count));

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
                Assert.That(entries[i] & 0xfff & ~2UL, Is.EqualTo(shift == 0 ? 0x65 : 0x25UL), "entry flags");
                if (shift != 0)
                {
                    Walk(target, shift - 9, covered);
                    continue;
                }
                mapped++;
                CheckMapping(covered, new Pfn(target >> Page.Shift), (entries[i] & 2) != 0);
            }
        }
    }

    private void CheckMapping(ulong frame, Pfn page, bool writable)
    {
        Gpa address = new Gfn(frame).Address;
        MemorySlot slot = Vm.Memory.Slots.Find(address);
        Assert.That(slot.Contains(address), $"frame {frame:x} is mapped without a slot");
        ulong user = slot.ToHva(address).Value;
        Frame? present = Process.Present(user, out bool mayWrite);
        Assert.That(present?.Number.Value, Is.EqualTo(page.Value), $"frame {frame:x} maps a page that is not its own");
        if (!writable)
            return;
        Assert.That(mayWrite && !slot.IsReadOnly, $"frame {frame:x} is writable");
        if (slot.LogsDirty)
        {
            ulong index = frame - slot.Start.Frame.Value;
            bool dirty = (slot.DirtyBitmap.Span[(int)(index / 64)] >> (int)(index % 64) & 1) != 0;
            Assert.That(dirty, $"frame {frame:x} is writable but not logged");
        }
    }

    /// <summary>Ends the VM and looks for leaks.</summary>
    public void Destroy()
    {
        Machine.FlushTlbs();
        VmMemory.Destroy(ref Vm);
        Host.AssertNothingInUse();
    }

    public void Dispose() => Host.Dispose();
}
