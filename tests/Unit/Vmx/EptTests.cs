// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Mmu;
using SharpKvm.Tests.Mmu;

namespace SharpKvm.Tests.Vmx;

/// <summary>Extended page tables as the manual has them (SDM vol. 3, 29.3.2), its bits written out.</summary>
public class EptTests
{
    /// <summary>Tables 29-1, 29-3, 29-5: rights in bits 0-2, accessed in bit 8.</summary>
    private const ulong TableBits = 0x107;
    /// <summary>
    /// Tables 29-2, 29-4, 29-6: readable, executable, write-back in bits 3-5, the guest's PAT ignored in bit 6,
    /// accessed and dirty in bits 8 and 9; bit 7 in all but the last level.
    /// </summary>
    private const ulong LeafBits = 0x375, LargeBits = 0x3f5;

    [TestCase(1, 0x12_3456_7000ul, LeafBits)]
    [TestCase(2, 0x12_3440_0000ul, LargeBits)]
    [TestCase(3, 0x12_0000_0000ul, LargeBits)]
    public void AMappingIsATableOfEachLevelAndALeaf(int level, ulong address, ulong bits)
    {
        const ulong Frame = 0x8_0404_0201; // entry 1 at each level
        using TestMemory memory = new();
        Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
        ulong leaf = Ept.Leaf(new Pfn(address >> Page.Shift), level) | NestedTables.Writable;
        var frame = new Gfn(Frame & ~(NestedTables.PagesOf(level) - 1) & 0xf_ffff_ffff);
        Assert.That(NestedTables.Map<Ept>(ref memory.Vm.Memory, ref memory.Spare, frame, level, leaf),
            Is.EqualTo(MapResult.Mapped));

        Hpa table = memory.Vm.Memory.Root;
        for (int at = 4; at > level; at--)
        {
            ulong entry = Entry(table, frame, at);
            Assert.That(entry & 0xfff0_0000_0000_0fff, Is.EqualTo(TableBits), $"level {at}");
            table = new Hpa(entry & ~TableBits);
        }
        Assert.That(Entry(table, frame, level), Is.EqualTo(address | bits | 2));
        memory.Destroy();
    }

    /// <summary>A large mapping that is split becomes small ones of the same kind.</summary>
    [Test]
    public void ASplitPageKeepsItsBits()
    {
        using TestMemory memory = new();
        Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
        ulong large = Ept.Leaf(new Pfn(0x1200), 2) | NestedTables.Writable | NestedTables.HostWritable;
        Assert.That(NestedTables.Map<Ept>(ref memory.Vm.Memory, ref memory.Spare, new Gfn(0x200), 2, large),
            Is.EqualTo(MapResult.Mapped));
        Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
        ulong small = Ept.Leaf(new Pfn(0x1203), 1);
        Assert.That(NestedTables.Map<Ept>(ref memory.Vm.Memory, ref memory.Spare, new Gfn(0x203), 1, small),
            Is.EqualTo(MapResult.Mapped));
        Hpa table = memory.Vm.Memory.Root;
        for (int at = 4; at > 1; at--)
            table = new Hpa(Entry(table, new Gfn(0x200), at) & ~TableBits);
        Assert.That(Entry(table, new Gfn(0x200), 1), Is.EqualTo(0x120_0000 | LeafBits | 2 | NestedTables.HostWritable));
        Assert.That(Entry(table, new Gfn(0x3ff), 1), Is.EqualTo(0x13f_f000 | LeafBits | 2 | NestedTables.HostWritable));
        memory.Destroy();
    }

    [TearDown]
    public void ForgetTheCpu() => Ept.HasAccessedDirty = Ept.ExecutesSmallOnly = Ept.LogsWrites = false;

    [Test]
    public void HardwareSaysInBit8ThatItUsedAnEntry()
    {
        Ept.HasAccessedDirty = true;
        Assert.That(Ept.Accessed, Is.EqualTo(0x100));
    }

    /// <summary>The rights go, in TLBs, too; the next use faults, and gives them back.</summary>
    [Test]
    public void WithoutThatBitAPageIsAgedByItsRights([Values] bool write)
    {
        using TestMemory memory = new();
        memory.AddMemory(1, 0x200, 4);
        var start = new Hva(TestMemory.UserAddress(1, 1));
        Gpa page = new Gfn(0x201).Address;
        Assert.That(Fault(present: false), Is.EqualTo(FaultOutcome.Mapped));
        ulong entry = EntryOf(memory, page.Frame);
        int flushes = memory.Machine.Flushes;
        Assert.That(Age() && memory.Machine.Flushes > flushes, "used since");
        Assert.That(EntryOf(memory, page.Frame), Is.EqualTo(entry & ~7ul));
        Assert.That(Age() || Invalidation.IsYoung<Ept>(ref memory.Vm, start), Is.False);
        Assert.That(NestedTables.TryAllowWrite(ref memory.Vm.Memory, page.Frame, 3), Is.False, "no right to read");
        Assert.That(Fault(present: true), Is.EqualTo(FaultOutcome.Mapped));
        Assert.That(EntryOf(memory, page.Frame), Is.EqualTo(entry));
        Assert.That(Age(), "used again");
        memory.Destroy();

        FaultOutcome Fault(bool present) =>
            NestedFault.Handle<Ept>(ref memory.Vcpu, page, write, present, wait: true);
        bool Age() => Invalidation.Age<Ept>(ref memory.Vm, start, start + Page.Size);
    }

    /// <summary>
    /// Written pages stay writable: only the flag goes, and its return is logged. Of large pages the right goes.
    /// </summary>
    [Test]
    public void WhatHardwareLogsIsNotWriteProtected()
    {
        using TestMemory memory = new();
        Ept.HasAccessedDirty = Ept.LogsWrites = true;
        memory.AddMemory(1, 0x200, 4);
        Gpa page = new Gfn(0x201).Address;
        Assert.That(Fault(write: true), Is.EqualTo(FaultOutcome.Mapped));
        ulong entry = EntryOf(memory, page.Frame);
        Assert.That(NestedTables.WriteProtect(ref memory.Vm.Memory, page.Frame, page.Frame + 1));
        Assert.That(EntryOf(memory, page.Frame), Is.EqualTo(entry & ~0x200ul));
        Assert.That(NestedTables.WriteProtect(ref memory.Vm.Memory, page.Frame, page.Frame + 1), Is.False);
        // A read that mapped it at the same time must not say that it was written to.
        Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
        ulong read = Ept.Leaf(new Pfn((entry & 0xfffff_ffff_f000) >> 12), 1);
        Assert.That(NestedTables.Map<Ept>(ref memory.Vm.Memory, ref memory.Spare, page.Frame, 1, read),
            Is.EqualTo(MapResult.Mapped));
        Assert.That(EntryOf(memory, page.Frame), Is.EqualTo(entry & ~0x200ul));

        ulong large = Ept.Leaf(new Pfn(0x1200), 2) | NestedTables.Writable;
        Assert.That(NestedTables.Map<Ept>(ref memory.Vm.Memory, ref memory.Spare, new Gfn(0x400), 2, large),
            Is.EqualTo(MapResult.Mapped));
        Assert.That(NestedTables.WriteProtect(ref memory.Vm.Memory, new Gfn(0x401), new Gfn(0x402)));
        Assert.That(NestedTables.WriteProtect(ref memory.Vm.Memory, new Gfn(0x401), new Gfn(0x402)), Is.False);
        memory.Destroy();

        FaultOutcome Fault(bool write) =>
            NestedFault.Handle<Ept>(ref memory.Vcpu, page, write, present: false, wait: true);
    }

    /// <summary>iTLB multihit: what is executed is mapped small, and the rest of its large page stays data.</summary>
    [Test]
    public void WhereLargePagesMayNotBeExecutedAFetchSplitsThem()
    {
        Ept.ExecutesSmallOnly = true;
        Ept.LargestLevel = 3;
        using TestMemory memory = new();
        Assert.That((Ept.LargestFor(fetch: true), Ept.LargestFor(fetch: false)), Is.EqualTo((1, 3)));
        ulong large = Ept.Leaf(new Pfn(0x1200), 2) | NestedTables.Writable;
        Assert.That(large, Is.EqualTo(0x120_0000 | LargeBits & ~4ul | 2));
        Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
        Assert.That(NestedTables.Map<Ept>(ref memory.Vm.Memory, ref memory.Spare, new Gfn(0x200), 2, large),
            Is.EqualTo(MapResult.Mapped));
        Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
        Assert.That(NestedTables.Map<Ept>(ref memory.Vm.Memory, ref memory.Spare, new Gfn(0x203), 1,
            Ept.Leaf(new Pfn(0x1203), 1)), Is.EqualTo(MapResult.Mapped));
        Assert.That(EntryOf(memory, new Gfn(0x203)), Is.EqualTo(0x120_3000 | LeafBits | 2));
        Assert.That(EntryOf(memory, new Gfn(0x204)), Is.EqualTo(0x120_4000 | LeafBits & ~4ul | 2));
        memory.Destroy();
    }

    /// <summary>The entry of level 1.</summary>
    private static ulong EntryOf(TestMemory memory, Gfn frame)
    {
        Hpa table = memory.Vm.Memory.Root;
        for (int at = 4; at > 1; at--)
            table = new Hpa(Entry(table, frame, at) & ~TableBits);
        return Entry(table, frame, 1);
    }

    private static ulong Entry(Hpa table, Gfn frame, int level) =>
        KernelPages.Entries(table)[(int)(frame.Value >> 9 * (level - 1) & 511)];
}
