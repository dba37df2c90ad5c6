// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Mmu;

namespace SharpKvm.Tests.Mmu;

[TestFixture]
internal sealed class DirtyLogTests
{
    private const ulong Bitmap = 0x6000_0000_0000;
    private const ulong Pages = 5000;
    private TestMemory _memory = null!;

    [SetUp]
    public void SetUp()
    {
        _memory = new TestMemory();
        _memory.Process.Map(Bitmap, 1);
        _memory.AddMemory(1, 100, Pages);
    }

    [TearDown]
    public void TearDown()
    {
        _memory.CheckInvariants();
        _memory.Destroy();
        _memory.Dispose();
    }

    private void Log(bool enabled) => Assert.That(
        _memory.SetRegion(1, 100, Pages, TestMemory.UserAddress(1, 0), enabled ? 1u : 0), Is.EqualTo(Errno.Ok));

    /// <summary>Pages of the slot that the log names.</summary>
    private List<ulong> Collect()
    {
        Assert.That(_memory.GetDirtyLog(1, Bitmap), Is.EqualTo(Errno.Ok));
        byte[] bits = new byte[(Pages + 63) / 64 * 8];
        Assert.That(_memory.Process.Read(Bitmap, bits));
        List<ulong> pages = [];
        for (ulong page = 0; page < (ulong)bits.Length * 8; page++)
        {
            if ((bits[page / 8] >> (int)(page % 8) & 1) != 0)
                pages.Add(page);
        }
        return pages;
    }

    [Test]
    public void NamesThePagesWrittenSinceTheLastCall()
    {
        _memory.Access(100, write: true, out _);
        _memory.Access(101, write: true, out _);
        Log(enabled: true);
        Assert.That(Collect(), Is.Empty, "what was written before does not count");

        ulong[] written = [0, 1, 62, 63, 64, 65, 127, 128, 4095, 4096, 4097, Pages - 1];
        foreach (ulong page in written)
            _memory.Access(100 + page, write: true, out _);
        // Read only, one of them a page that the process could let the guest write.
        _memory.Access(100 + 300, write: false, out _);
        Assert.That(_memory.Process.Write(TestMemory.UserAddress(1, 301), [1]));
        _memory.Access(100 + 301, write: false, out _);
        Assert.That(Collect(), Is.EqualTo(written));
        Assert.That(Collect(), Is.Empty);

        _memory.Access(100 + 64, write: true, out _);
        Assert.That(Collect(), Is.EqualTo(new ulong[] { 64 }));

        Log(enabled: false);
        Assert.That(_memory.GetDirtyLog(1, Bitmap), Is.EqualTo(Errno.ENOENT));
        _memory.Access(100 + 64, write: true, out _);
    }

    [Test]
    public void NamesAWholeWord()
    {
        Log(enabled: true);
        for (ulong page = 64; page < 192; page++)
            _memory.Access(100 + page, write: true, out _);
        Assert.That(Collect(), Has.Count.EqualTo(128));
        for (ulong page = 64; page < 192; page++)
            Assert.That(_memory.Machine.Access(new Gfn(100 + page), write: true), Is.Null);
    }

    [Test]
    public void NamesPagesWrittenByTheCore()
    {
        Log(enabled: true);
        byte[] data = new byte[2 * Page.Size + 2];
        Gpa start = new Gfn(100 + 7).Address + (Page.Size - 1);
        Assert.That(GuestMemory.Write(ref _memory.Vm, start, data), Is.EqualTo(MemoryAccess.Done));
        Assert.That(
            GuestMemory.CompareExchange(ref _memory.Vm, new Gfn(100 + 70).Address, 4, 0, 1, out bool swapped),
            Is.EqualTo(MemoryAccess.Done));
        Assert.That(swapped);
        GuestMemory.CompareExchange(ref _memory.Vm, new Gfn(100 + 80).Address, 4, 1, 2, out _);
        Assert.That(Collect(), Is.EqualTo(new ulong[] { 7, 8, 9, 10, 70 }));
    }

    [Test]
    public void KeepsEveryBitWhenTheBitmapCannotBeWritten()
    {
        Log(enabled: true);
        _memory.Access(100 + 5, write: true, out _);
        _memory.Access(100 + 4500, write: true, out _);
        Assert.That(_memory.GetDirtyLog(1, 0x1000), Is.EqualTo(Errno.EFAULT));
        Assert.That(_memory.GetDirtyLog(1, 0xffff_8880_0000_0000), Is.EqualTo(Errno.EFAULT));
        Assert.That(Collect(), Is.EqualTo(new ulong[] { 5, 4500 }));
    }

    [Test]
    public void KeepsTheLogOfAMovedSlot()
    {
        Log(enabled: true);
        _memory.Access(100 + 5, write: true, out _);
        Assert.That(_memory.SetRegion(1, 9000, Pages, TestMemory.UserAddress(1, 0), 1), Is.EqualTo(Errno.Ok));
        Assert.That(Collect(), Is.EqualTo(new ulong[] { 5 }));
    }

    [Test]
    public void RefusesWhatIsNotLogged()
    {
        Assert.Multiple(() =>
        {
            Assert.That(_memory.GetDirtyLog(1, Bitmap), Is.EqualTo(Errno.ENOENT), "no log");
            Assert.That(_memory.GetDirtyLog(2, Bitmap), Is.EqualTo(Errno.ENOENT), "no slot");
            Assert.That(_memory.GetDirtyLog(MemorySlots.MaxSlots, Bitmap), Is.EqualTo(Errno.EINVAL), "id too large");
            Assert.That(_memory.GetDirtyLog(0x10001, Bitmap), Is.EqualTo(Errno.EINVAL), "address space");
        });
        Log(enabled: true);
        _memory.Host.FailingAllocation = _memory.Host.Allocations;
        Assert.That(_memory.GetDirtyLog(1, Bitmap), Is.EqualTo(Errno.ENOMEM));
    }

    [Test]
    public void CatchesAWriteFaultThatRacesWithTheStartOfLogging()
    {
        // The fault saw the slot without a log; its mapping would be writable and never be noticed.
        _memory.Process.AfterLookUp = () => Log(enabled: true);
        Assert.That(_memory.Fault(103, write: true), Is.EqualTo(FaultOutcome.Retry));
        _memory.Access(103, write: true, out _);
        Assert.That(Collect(), Is.EqualTo(new ulong[] { 3 }));
    }

    private static IEnumerable<TestCaseData> Ranges()
    {
        yield return Case(0, 0, Errno.Ok);
        yield return Case(64, 128, Errno.Ok);
        yield return Case(4992, (uint)(Pages - 4992), Errno.Ok);
        yield return Case(1, 64, Errno.EINVAL);
        yield return Case(0, 63, Errno.EINVAL);
        yield return Case(0, (uint)Pages + 1, Errno.EINVAL);
        yield return Case(5056, 0, Errno.EINVAL);
        yield return Case(4992, 64, Errno.EINVAL);
        yield return Case(ulong.MaxValue & ~63UL, 64, Errno.EINVAL);

        static TestCaseData Case(ulong first, uint pages, int expected) =>
            new TestCaseData(first, pages).Returns(expected).SetArgDisplayNames($"{first}", $"{pages}");
    }

    [TestCaseSource(nameof(Ranges))]
    public int ClearsAlignedRangesOnly(ulong first, uint pages)
    {
        Log(enabled: true);
        return _memory.ClearDirtyLog(1, first, pages, Bitmap);
    }

    [Test]
    public void ClearsByHandWhatUserSpaceNames()
    {
        Assert.That(DirtyLog.Choose(ref _memory.Vm, DirtyLog.ManualProtect), Is.EqualTo(Errno.Ok));
        Log(enabled: true);
        foreach (ulong page in new ulong[] { 3, 64, 65, 130 })
            _memory.Access(100 + page, write: true, out _);
        Assert.That(Collect(), Is.EqualTo(new ulong[] { 3, 64, 65, 130 }));
        Assert.That(Collect(), Is.EqualTo(new ulong[] { 3, 64, 65, 130 }), "reading takes nothing out");

        // Of pages 64 and up the first, and one that is not in the log.
        Assert.That(_memory.Process.Write(Bitmap, [0b101, 0, 0, 0, 0, 0, 0, 0]));
        Assert.That(_memory.ClearDirtyLog(1, 64, 64, Bitmap), Is.EqualTo(Errno.Ok));
        Assert.That(Collect(), Is.EqualTo(new ulong[] { 3, 65, 130 }));
        Assert.That(_memory.Machine.Access(new Gfn(100 + 64), write: true), Is.Null, "protected again");
        Assert.That(_memory.Machine.Access(new Gfn(100 + 65), write: true), Is.Not.Null, "not touched");
        _memory.Access(100 + 64, write: true, out _);
        Assert.That(Collect(), Is.EqualTo(new ulong[] { 3, 64, 65, 130 }));
        Assert.That(_memory.ClearDirtyLog(1, 64, 64, 0x1000), Is.EqualTo(Errno.EFAULT));
    }

    [Test]
    public void ALogCanBeginFull()
    {
        _memory.Access(100 + 7, write: true, out _);
        const ulong Options = DirtyLog.ManualProtect | DirtyLog.InitiallySet;
        Assert.That(DirtyLog.Choose(ref _memory.Vm, Options), Is.EqualTo(Errno.Ok));
        Log(enabled: true);
        Assert.That(_memory.Machine.Access(new Gfn(100 + 7), write: true), Is.Not.Null, "nothing is protected");
        Assert.That(Collect(), Has.Count.EqualTo((int)Pages));
        Assert.That(_memory.Process.Write(Bitmap, [0x80, 0, 0, 0, 0, 0, 0, 0]));
        Assert.That(_memory.ClearDirtyLog(1, 0, 64, Bitmap), Is.EqualTo(Errno.Ok));
        Assert.That(_memory.Machine.Access(new Gfn(100 + 7), write: true), Is.Null);
        Assert.That(Collect(), Has.Count.EqualTo((int)Pages - 1));
    }

    [TestCase(0UL, ExpectedResult = Errno.Ok)]
    [TestCase(1UL, ExpectedResult = Errno.Ok)]
    [TestCase(2UL, ExpectedResult = Errno.EINVAL)]
    [TestCase(3UL, ExpectedResult = Errno.Ok)]
    [TestCase(4UL, ExpectedResult = Errno.EINVAL)]
    public int RefusesOptionsThatDoNotExist(ulong options) => DirtyLog.Choose(ref _memory.Vm, options);
}
