// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;

namespace SharpKvm.Tests.Mmu;

[TestFixture]
internal sealed class NestedFaultTests
{
    private TestMemory _memory = null!;

    [SetUp]
    public void SetUp() => _memory = new TestMemory();

    [TearDown]
    public void TearDown()
    {
        _memory.CheckInvariants();
        _memory.Destroy();
        _memory.Dispose();
    }

    [Test]
    public void MapsFreshMemoryOnAWrite()
    {
        _memory.AddMemory(1, 10, 10);
        Assert.That(_memory.Fault(12, write: true), Is.EqualTo(FaultOutcome.Mapped));
        Assert.That(_memory.Machine.Access(new Gfn(12), write: true), Is.Not.Null);
    }

    [Test]
    public void MapsTheZeroPageReadOnlyAndThenItsCopy()
    {
        _memory.AddMemory(1, 0, 4);
        Pfn? zero = _memory.Access(2, write: false, out _);
        Assert.That(_memory.Machine.Access(new Gfn(2), write: true), Is.Null);
        Pfn? copy = _memory.Access(2, write: true, out _);
        Assert.That(copy!.Value.Value, Is.Not.EqualTo(zero!.Value.Value));
        Assert.That(_memory.Access(2, write: false, out _)!.Value.Value, Is.EqualTo(copy.Value.Value));
    }

    [Test]
    public void MapsWritableOnAReadOfAWritablePage()
    {
        _memory.AddMemory(1, 0, 4);
        Assert.That(GuestMemory.TryWrite(ref _memory.Vm, default, 1), Is.True);
        Assert.That(_memory.Fault(0, write: false), Is.EqualTo(FaultOutcome.Mapped));
        Assert.That(_memory.Machine.Access(default, write: true), Is.Not.Null);
    }

    [Test]
    public void NeverTakesRightsBack()
    {
        _memory.AddMemory(1, 0, 4, flags: 1);
        _memory.Access(1, write: true, out _);
        // Another vCPU's read fault of the same page, which alone would map it read-only.
        Assert.That(_memory.Fault(1, write: false), Is.EqualTo(FaultOutcome.Mapped));
        _memory.Machine.FlushTlbs();
        Assert.That(_memory.Machine.Access(new Gfn(1), write: true), Is.Not.Null);
    }

    [TestCase(9UL, false, 0u, ExpectedResult = FaultOutcome.Mmio)]
    [TestCase(20UL, true, 0u, ExpectedResult = FaultOutcome.Mmio)]
    [TestCase(ulong.MaxValue >> 12, true, 0u, ExpectedResult = FaultOutcome.Mmio)]
    [TestCase(19UL, true, 2u, ExpectedResult = FaultOutcome.ReadOnlyWrite)]
    [TestCase(19UL, false, 2u, ExpectedResult = FaultOutcome.Mapped)]
    public FaultOutcome TellsMemoryFromMmio(ulong frame, bool write, uint flags)
    {
        _memory.AddMemory(1, 10, 10, flags);
        return _memory.Fault(frame, write);
    }

    [Test]
    public void MapsAReadOnlySlotReadOnly()
    {
        _memory.AddMemory(1, 0, 4, flags: 2);
        Assert.That(_memory.Process.Write(TestMemory.UserAddress(1, 0), [1, 2, 3]));
        Assert.That(_memory.Access(0, write: false, out _), Is.Not.Null);
        Assert.That(_memory.Machine.Access(default, write: true), Is.Null);
    }

    [Test]
    public void ReportsMemoryThatTheProcessLacks()
    {
        Assert.That(_memory.SetRegion(1, 0, 4, TestMemory.UserBase), Is.EqualTo(Errno.Ok));
        Assert.That(_memory.Fault(0, write: false), Is.EqualTo(FaultOutcome.Error));
        _memory.Process.Map(TestMemory.UserBase, 4, writable: false);
        Assert.That(_memory.Fault(0, write: false), Is.EqualTo(FaultOutcome.Mapped));
        Assert.That(_memory.Fault(0, write: true), Is.EqualTo(FaultOutcome.Error));
    }

    [Test]
    public void ReportsASignal()
    {
        _memory.AddMemory(1, 0, 4);
        _memory.Process.SignalPending = true;
        Assert.That(_memory.Fault(0, write: true), Is.EqualTo(FaultOutcome.Interrupted));
        Assert.That(_memory.Fault(0, write: true), Is.EqualTo(FaultOutcome.Mapped));
    }

    [Test]
    public void LosesARaceAgainstUnmap()
    {
        // munmap strikes between the look-up of the page and the MMU lock: the page must not be mapped.
        _memory.AddMemory(1, 0, 4);
        _memory.Process.AfterLookUp = () => _memory.Process.Unmap(TestMemory.UserAddress(1, 0), 4);
        Assert.That(_memory.Fault(2, write: true), Is.EqualTo(FaultOutcome.Retry));
        Assert.That(_memory.Vm.Memory.Statistics.MappedPages, Is.Zero);
        Assert.That(_memory.Fault(2, write: true), Is.EqualTo(FaultOutcome.Error));
    }

    [Test]
    public void LosesARaceAgainstAnInvalidationUnderWay()
    {
        _memory.AddMemory(1, 0, 4);
        Hva start = new(TestMemory.UserAddress(1, 0));
        _memory.Machine.BeginInvalidation(start, start + Page.Size);
        Assert.That(_memory.Fault(0, write: true), Is.EqualTo(FaultOutcome.Retry), "inside of the range");
        Assert.That(_memory.Fault(1, write: true), Is.EqualTo(FaultOutcome.Mapped), "outside of it");
        _memory.Machine.EndInvalidation();
        Assert.That(_memory.Fault(0, write: true), Is.EqualTo(FaultOutcome.Mapped), "afterwards");
    }

    [Test]
    public void FollowsTheProcess()
    {
        _memory.AddMemory(1, 0, 4);
        ulong user = TestMemory.UserAddress(1, 0);
        Pfn first = _memory.Access(0, write: true, out _)!.Value;

        _memory.Process.Share(user, 4);
        Assert.That(_memory.Machine.Access(default, write: false), Is.Null, "fork");
        Assert.That(_memory.Access(0, write: false, out _)!.Value.Value, Is.EqualTo(first.Value));
        Pfn copy = _memory.Access(0, write: true, out _)!.Value;
        Assert.That(copy.Value, Is.Not.EqualTo(first.Value), "copy on write");

        _memory.Process.Migrate(user, 4);
        Assert.That(_memory.Access(0, write: true, out _)!.Value.Value, Is.Not.EqualTo(copy.Value), "migration");

        _memory.Process.Protect(user, 4, writable: false);
        Assert.That(_memory.Access(0, write: true, out FaultOutcome outcome), Is.Null, "mprotect");
        Assert.That(outcome, Is.EqualTo(FaultOutcome.Error));
    }

    [Test]
    public void UnmapsEveryFrameThatSharesThePage()
    {
        _memory.Process.Map(TestMemory.UserBase, 4);
        for (uint slot = 0; slot < 3; slot++)
        {
            Assert.That(_memory.SetRegion(slot, slot * 100, 4, TestMemory.UserBase), Is.EqualTo(Errno.Ok));
            Assert.That(_memory.Access(slot * 100 + 3, write: true, out _), Is.Not.Null);
        }
        _memory.Process.Unmap(TestMemory.UserBase + 3 * Page.Size, 1);
        Assert.That(_memory.Vm.Memory.Statistics.MappedPages, Is.Zero);
        Assert.That(_memory.Machine.Tlb, Is.Empty);
    }

    [Test]
    public void FlushesForTheFirstOfTwoSlots()
    {
        _memory.Process.Map(TestMemory.UserBase, 4);
        _memory.SetRegion(1, 0, 4, TestMemory.UserBase);
        _memory.SetRegion(2, 100, 4, TestMemory.UserBase);
        _memory.Access(1, write: true, out _);
        _memory.Process.Unmap(TestMemory.UserBase, 4);
        Assert.That(_memory.Machine.Tlb, Is.Empty);
    }

    [TestCase(0, 4, ExpectedResult = true)]
    [TestCase(2, 1, ExpectedResult = true)]
    [TestCase(3, 1, ExpectedResult = false)]
    [TestCase(4, 100, ExpectedResult = false)]
    [TestCase(-5, 5, ExpectedResult = false)]
    [TestCase(-5, 8, ExpectedResult = true)]
    public bool FlushesOnlyWhenSomethingWasMapped(int firstPage, int pages)
    {
        _memory.AddMemory(1, 0, 4);
        _memory.Access(2, write: true, out _);
        Hva start = new(TestMemory.UserAddress(1, 0) + (ulong)(firstPage * Page.Size));
        _memory.Machine.Lock();
        int before = _memory.Machine.Flushes;
        Invalidation.UnmapHva(ref _memory.Vm, start, start + (ulong)(pages * Page.Size));
        _memory.Machine.Unlock();
        return _memory.Machine.Flushes != before;
    }

    [Test]
    public void GivesTablesBackWithTheLastPageTheyMap()
    {
        _memory.AddMemory(1, 0, 4);
        _memory.Access(1, write: true, out _);
        _memory.Access(2, write: true, out _);
        int pages = _memory.Host.PagesInUse;
        _memory.Process.Unmap(TestMemory.UserAddress(1, 0), 2);
        Assert.That(_memory.Vm.Memory.Statistics.TablePages, Is.EqualTo(4), "one page is left");
        _memory.Process.Unmap(TestMemory.UserAddress(1, 2), 2);
        Assert.That(_memory.Vm.Memory.Statistics.TablePages, Is.EqualTo(1), "the root alone");
        Assert.That(_memory.Host.PagesInUse, Is.EqualTo(pages - 3), "pages of the kernel");
    }

    [Test]
    public void NoticesNothingAfterDestruction()
    {
        _memory.AddMemory(1, 0, 4);
        _memory.Access(2, write: true, out _);
        SimulatedVm machine = new(_memory.Host);
        Assert.That(VmMemory.Init(ref machine.Vm, 48), Is.EqualTo(Errno.Ok));
        VmMemory.Destroy(ref machine.Vm);
        _memory.Process.Unmap(TestMemory.UserAddress(1, 0), 4);
        Assert.That(machine.Flushes, Is.Zero);
    }
}
