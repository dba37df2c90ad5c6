// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Mmu;
using FaultOutcome = SharpKvm.Mmu.FaultOutcome;

namespace SharpKvm.Tests.Mmu;

/// <summary>Mappings follow the size of the process's own.</summary>
[TestFixture]
internal sealed class LargePageTests
{
    private const ulong LargePages = 512;
    private const ulong Bitmap = 0x6000_0000_0000;
    private TestMemory _memory = null!;

    [SetUp]
    public void SetUp()
    {
        _memory = new TestMemory();
        _memory.Process.Map(Bitmap, 1);
    }

    [TearDown]
    public void TearDown()
    {
        _memory.CheckInvariants();
        _memory.Destroy();
        _memory.Dispose();
    }

    private ulong Mapped => _memory.Vm.Memory.Statistics.MappedPages;

    /// <summary>A slot of so many pages at a frame, large pages behind all of it that is aligned.</summary>
    private void AddLarge(uint slot, ulong first, ulong pages, uint flags = 0, ulong skew = 0)
    {
        ulong user = TestMemory.UserAddress(slot, skew);
        _memory.Process.Map(TestMemory.UserAddress(slot, 0), (skew + pages + 2 * LargePages) & ~(LargePages - 1));
        for (ulong page = 0; page < skew + pages; page += LargePages)
            _memory.Process.MakeLarge(TestMemory.UserAddress(slot, page));
        Assert.That(_memory.SetRegion(slot, first, pages, user, flags), Is.EqualTo(Errno.Ok));
    }

    [Test]
    public void OneFaultMapsALargePage()
    {
        AddLarge(1, LargePages, 2 * LargePages);
        Assert.That(_memory.Access(LargePages + 7, write: true, out _), Is.Not.Null);
        Assert.That(Mapped, Is.EqualTo(LargePages));
        Assert.That(_memory.Machine.Access(new Gfn(2 * LargePages - 1), write: true), Is.Not.Null);
        Assert.That(_memory.Machine.Access(new Gfn(2 * LargePages), write: true), Is.Null);
    }

    [TestCase(LargePages, 2 * LargePages, 0u, 1UL, TestName = "the process's addresses are aligned otherwise")]
    [TestCase(LargePages + 1, LargePages, 0u, 1UL, TestName = "the slot begins within")]
    [TestCase(LargePages, LargePages - 1, 0u, 0UL, TestName = "the slot ends within")]
    [TestCase(LargePages, 2 * LargePages, 1u, 0UL, TestName = "writes are logged")]
    public void StaysSmallWhen(ulong first, ulong pages, uint flags, ulong skew)
    {
        AddLarge(1, first, pages, flags, skew);
        Assert.That(_memory.Access(first + 5, write: true, out _), Is.Not.Null);
        Assert.That(Mapped, Is.EqualTo(1));
    }

    [Test]
    public void AReadOnlySlotHasLargePages()
    {
        AddLarge(1, 0, LargePages, flags: 2);
        Assert.That(_memory.Access(5, write: false, out _), Is.Not.Null);
        Assert.That((Mapped, _memory.Machine.Access(new Gfn(5), write: true)), Is.EqualTo((LargePages, (Pfn?)null)));
    }

    /// <summary>The notifier's range is a part: all of the mapping goes, and comes back small.</summary>
    [Test]
    public void AChangeOfOnePageSplits()
    {
        AddLarge(1, 0, LargePages);
        _memory.Access(5, write: true, out _);
        _memory.Process.Protect(TestMemory.UserAddress(1, 9), 1, writable: false);
        Assert.That(Mapped, Is.Zero);
        Assert.That(_memory.Access(5, write: true, out _), Is.Not.Null);
        Assert.That(Mapped, Is.EqualTo(1));
    }

    [Test]
    public void SmallPagesBecomeOneWhenTheProcessHasOne()
    {
        _memory.AddMemory(1, 0, LargePages);
        for (ulong page = 0; page < 20; page++)
            _memory.Access(page, write: true, out _);
        _memory.Process.MakeLarge(TestMemory.UserAddress(1, 0));
        Assert.That(_memory.Access(5, write: true, out _), Is.Not.Null);
        Assert.That(Mapped, Is.EqualTo(LargePages));
        Assert.That(_memory.Vm.Memory.Statistics.TablePages, Is.EqualTo(3), "the table of the small ones is gone");
    }

    [TestCase(true)]
    [TestCase(false)]
    public void WhatIsLeftOfALargePageIsWrittenTo(bool wait)
    {
        AddLarge(1, 0, LargePages);
        _memory.Access(5, write: true, out _);
        _memory.Process.Unmap(TestMemory.UserAddress(1, 7), 1);
        FaultOutcome outcome =
            NestedFault.Handle<Npt>(ref _memory.Vcpu, new Gfn(5).Address, write: true, present: false, wait);
        Assert.That(outcome, Is.EqualTo(FaultOutcome.Mapped));
    }

    [Test]
    public void LoggingSplitsAtTheFirstWriteAndJoinsAtItsEnd()
    {
        AddLarge(1, 0, LargePages);
        _memory.Access(5, write: true, out _);
        ulong user = TestMemory.UserAddress(1, 0);
        Assert.That(_memory.SetRegion(1, 0, LargePages, user, 1), Is.EqualTo(Errno.Ok));
        Assert.That(_memory.Machine.Access(new Gfn(5), write: true), Is.Null);
        int tables = (int)_memory.Vm.Memory.Statistics.TablePages;
        Assert.That(_memory.Access(5, write: true, out _), Is.Not.Null);
        Assert.That(_memory.Vm.Memory.Statistics.TablePages, Is.EqualTo(tables + 1));
        Assert.That(Mapped, Is.EqualTo(LargePages), "reads of the others need no fault");
        Assert.That(_memory.Machine.Access(new Gfn(6), write: true), Is.Null);

        Assert.That(_memory.SetRegion(1, 0, LargePages, user), Is.EqualTo(Errno.Ok));
        Assert.That(_memory.Access(6, write: true, out _), Is.Not.Null);
        Assert.That(_memory.Vm.Memory.Statistics.TablePages, Is.EqualTo(tables));
    }

    /// <summary>An invalidation of another page of the same large page is under way.</summary>
    [Test]
    public void WaitsForAnInvalidationOfAnyOfItsPages()
    {
        AddLarge(1, 0, LargePages);
        Hva start = new(TestMemory.UserAddress(1, 100));
        _memory.Machine.BeginInvalidation(start, start + Page.Size);
        Assert.That(_memory.Fault(5, write: true), Is.EqualTo(FaultOutcome.Retry));
        _memory.Machine.EndInvalidation();
        Assert.That(_memory.Fault(5, write: true), Is.EqualTo(FaultOutcome.Mapped));
    }

    /// <summary>The log's write protection ends by the fast way: Linux is not asked for the page.</summary>
    [Test]
    public void AWriteToAProtectedPageNeedsNoLookUp()
    {
        _memory.AddMemory(1, 0, 4, flags: 1);
        _memory.Access(1, write: true, out _);
        Assert.That(_memory.GetDirtyLog(1, Bitmap), Is.EqualTo(Errno.Ok));
        bool lookedUp = false;
        _memory.Process.AfterLookUp = () => lookedUp = true;
        Assert.That(_memory.Access(1, write: true, out _), Is.Not.Null);
        Assert.That(lookedUp, Is.False);
        Assert.That(_memory.Vm.Memory.Slots.Find(default).DirtyBitmap.Span[0], Is.EqualTo(2UL));
    }

    [Test]
    public void TellsUsedPagesFromOthers()
    {
        _memory.AddMemory(1, 0, 4);
        Hva page = new(TestMemory.UserAddress(1, 2));
        Assert.That(Age(page), Is.False, "not mapped");
        _memory.Access(2, write: true, out _);
        Assert.That(IsYoung(page), "asking changes nothing");
        Assert.That(IsYoung(page));
        Assert.That(Age(page));
        Assert.That(Age(page) || IsYoung(page), Is.False, "not used since");
        _memory.Machine.FlushTlbs();
        Assert.That(_memory.Machine.Access(new Gfn(2), write: true), Is.Not.Null);
        Assert.That(Age(page), "hardware has noted the use");
        Assert.That(Age(new Hva(TestMemory.UserAddress(1, 1))), Is.False, "a neighbour");

        bool Age(Hva address) => Invalidation.Age<Npt>(ref _memory.Vm, address, address + Page.Size);
        bool IsYoung(Hva address) => Invalidation.IsYoung<Npt>(ref _memory.Vm, address);
    }

    private enum Operation
    {
        Read, Write, WriteRacing, MakeLarge, Migrate, Share, Unmap, Log, StopLogging, DirtyLog, Move, Age,
    }

    /// <summary>Guest, VMM and Linux at random over two large pages.</summary>
    [Test]
    public void KeepsTheGuestWithinTheProcess() =>
        Gen.Select(Gen.Enum<Operation>(), Gen.ULong[0, 2 * LargePages - 1], Gen.Int[0, 11]).Array[1, 40].Sample(list =>
        {
            using TestMemory memory = new();
            memory.Process.Map(Bitmap, 1);
            memory.AddMemory(1, 0, 2 * LargePages);
            ulong user = TestMemory.UserAddress(1, 0);
            ulong first = 0;
            uint flags = 0;
            foreach ((Operation operation, ulong page, int other) in list)
            {
                Perform(operation, page, other);
                memory.CheckInvariants();
            }
            memory.Destroy();

            void Perform(Operation operation, ulong page, int other)
            {
                switch (operation)
                {
                    case Operation.Read or Operation.Write:
                        memory.Access(first + page, operation == Operation.Write, out _);
                        break;
                    case Operation.WriteRacing:
                        memory.Process.AfterLookUp = () => Perform(
                            (Operation)other == Operation.WriteRacing ? Operation.Migrate : (Operation)other, page, 0);
                        memory.Access(first + page, write: true, out _);
                        memory.Process.AfterLookUp = null;
                        break;
                    case Operation.MakeLarge:
                        memory.Process.Map(user + (page / LargePages * LargePages << Page.Shift), LargePages);
                        memory.Process.MakeLarge(user + (page / LargePages * LargePages << Page.Shift));
                        break;
                    case Operation.Migrate:
                        memory.Process.Migrate(user + (page << Page.Shift), 1);
                        break;
                    case Operation.Share:
                        memory.Process.Share(user + (page << Page.Shift), 3);
                        break;
                    case Operation.Unmap:
                        memory.Process.Unmap(user + (page << Page.Shift), 1);
                        break;
                    case Operation.Log or Operation.StopLogging:
                        flags = operation == Operation.Log ? 1u : 0;
                        memory.SetRegion(1, first, 2 * LargePages, user, flags);
                        break;
                    case Operation.DirtyLog:
                        memory.GetDirtyLog(1, Bitmap);
                        break;
                    case Operation.Move:
                        // Every other time to where large mappings cannot be.
                        first = first == 0 ? (other % 2 == 0 ? 4 * LargePages : 5) : 0;
                        memory.SetRegion(1, first, 2 * LargePages, user, flags);
                        break;
                    case Operation.Age:
                        Hva start = new(user + (page << Page.Shift));
                        if (Invalidation.Age<Npt>(ref memory.Vm, start, start + Page.Size))
                            memory.Machine.FlushTlbs();
                        break;
                }
            }
        }, iter: 300);
}
