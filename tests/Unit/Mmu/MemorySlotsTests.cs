// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;
using FaultOutcome = SharpKvm.Mmu.FaultOutcome;

namespace SharpKvm.Tests.Mmu;

[TestFixture]
internal sealed class MemorySlotsTests
{
    private const ulong User = TestMemory.UserBase;
    private const ulong KiB4 = Page.Size;
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

    private static IEnumerable<TestCaseData> Malformed()
    {
        yield return Case("unknown flag", flags: 4);
        yield return Case("internal flag", flags: 1 << 16);
        yield return Case("first id too large", slot: MemorySlots.MaxSlots);
        yield return Case("last 16-bit id", slot: 0xffff);
        yield return Case("another address space", slot: 0x1_0000);
        yield return Case("unaligned size", size: KiB4 + 1);
        yield return Case("unaligned guest address", guest: 0x800);
        yield return Case("unaligned user address", user: User + 8);
        yield return Case("kernel address", user: 0xffff_8880_0000_0000);
        yield return Case("non-canonical address", user: 0x8000_0000_0000_0000);
        yield return Case("past the user half", user: SimulatedProcess.UserEnd - KiB4, size: 2 * KiB4);
        yield return Case("guest range wraps", guest: 0xffff_ffff_ffff_f000, size: 2 * KiB4);
        yield return Case("too many pages", size: (MemorySlots.MaxPages + 1) << Page.Shift);
        yield return Case("beyond the physical addresses", guest: 1UL << TestMemory.PhysicalBits);
        yield return Case("last page beyond", guest: (1UL << TestMemory.PhysicalBits) - KiB4, size: 2 * KiB4);
        yield return Case("delete of a slot that is not there", size: 0);
        yield return Case("delete with an unknown flag", size: 0, flags: 8);

        static TestCaseData Case(
            string name, uint slot = 0, uint flags = 0, ulong guest = 0, ulong size = KiB4, ulong user = User) =>
            new TestCaseData(slot, flags, guest, size, user).SetArgDisplayNames(name);
    }

    [TestCaseSource(nameof(Malformed))]
    public void RefusesWhatIsMalformed(uint slot, uint flags, ulong guest, ulong size, ulong user)
    {
        kvm_userspace_memory_region region = new()
        {
            slot = slot, flags = flags, guest_phys_addr = guest, memory_size = size, userspace_addr = user,
        };
        Assert.That(MemorySlots.SetRegion(ref _memory.Vm, in region), Is.EqualTo(Errno.EINVAL));
        int slots = 0;
        foreach (ref readonly MemorySlot found in _memory.Vm.Memory.Slots.All)
            slots += found.Size != 0 ? 1 : 0;
        Assert.That(slots, Is.Zero);
    }

    [Test]
    public void AcceptsTheExtremes()
    {
        ulong last = (1UL << (TestMemory.PhysicalBits - Page.Shift)) - 1;
        Assert.That(_memory.SetRegion(MemorySlots.MaxSlots - 1, last, 1, User, flags: 3), Is.EqualTo(Errno.Ok));
        Assert.That(_memory.SetRegion(0, 0, MemorySlots.MaxPages, 0), Is.EqualTo(Errno.Ok));
    }

    [TestCase(9, 1, ExpectedResult = Errno.Ok)]
    [TestCase(9, 2, ExpectedResult = Errno.EEXIST)]
    [TestCase(10, 10, ExpectedResult = Errno.EEXIST)]
    [TestCase(12, 1, ExpectedResult = Errno.EEXIST)]
    [TestCase(19, 5, ExpectedResult = Errno.EEXIST)]
    [TestCase(0, 50, ExpectedResult = Errno.EEXIST)]
    [TestCase(20, 1, ExpectedResult = Errno.Ok)]
    public int RefusesOverlap(int first, int pages)
    {
        Assert.That(_memory.SetRegion(1, 10, 10, User), Is.EqualTo(Errno.Ok));
        return _memory.SetRegion(2, (ulong)first, (ulong)pages, User);
    }

    [Test]
    public void RefusesChangesThatNeedANewSlot()
    {
        Assert.That(_memory.SetRegion(1, 10, 10, User), Is.EqualTo(Errno.Ok));
        Assert.Multiple(() =>
        {
            Assert.That(_memory.SetRegion(1, 10, 11, User), Is.EqualTo(Errno.EINVAL), "size");
            Assert.That(_memory.SetRegion(1, 10, 10, User + KiB4), Is.EqualTo(Errno.EINVAL), "user address");
            Assert.That(_memory.SetRegion(1, 10, 10, User, flags: 2), Is.EqualTo(Errno.EINVAL), "read-only");
            Assert.That(_memory.SetRegion(1, 10, 10, User), Is.EqualTo(Errno.Ok), "no change");
            Assert.That(_memory.SetRegion(1, 15, 10, User), Is.EqualTo(Errno.Ok), "move over itself");
            Assert.That(_memory.SetRegion(1, 15, 10, User, flags: 1), Is.EqualTo(Errno.Ok), "log");
        });
    }

    [Test]
    public void KeepsTheSlotWhenAMoveIsRefused()
    {
        _memory.AddMemory(1, 10, 10);
        _memory.AddMemory(2, 30, 10);
        _memory.Access(12, write: true, out _);
        Assert.That(_memory.SetRegion(1, 25, 10, TestMemory.UserAddress(1, 0)), Is.EqualTo(Errno.EEXIST));
        Assert.That(_memory.Machine.Access(new Gfn(12), write: true), Is.Not.Null);
    }

    [Test]
    public void RemovesMappingsOfADeletedSlot()
    {
        _memory.AddMemory(1, 0, 2000);
        _memory.AddMemory(2, 2000, 10);
        for (ulong frame = 0; frame < 2010; frame += 5)
            Assert.That(_memory.Access(frame, write: true, out _), Is.Not.Null);

        Assert.That(_memory.SetRegion(1, 0, 0, 0), Is.EqualTo(Errno.Ok));

        Assert.That(_memory.Machine.Tlb, Is.Empty);
        Assert.That(_memory.Vm.Memory.Statistics.MappedPages, Is.EqualTo(2));
        Assert.That(_memory.Access(5, write: false, out FaultOutcome outcome), Is.Null);
        Assert.That(outcome, Is.EqualTo(FaultOutcome.Mmio));
        Assert.That(_memory.Machine.Access(new Gfn(2000), write: true), Is.Not.Null);
    }

    [Test]
    public void GivesEmptyTablesBack()
    {
        for (uint slot = 0; slot < 20; slot++)
        {
            // Each far from the others, so that each needs tables of its own.
            _memory.AddMemory(slot, (ulong)slot << 27, 3);
            _memory.Access((ulong)slot << 27, write: true, out _);
        }
        Assert.That(_memory.Vm.Memory.Statistics.TablePages, Is.EqualTo(1 + 20 * 3));
        for (uint slot = 0; slot < 20; slot++)
            Assert.That(_memory.SetRegion(slot, 0, 0, 0), Is.EqualTo(Errno.Ok));
        Assert.That(_memory.Vm.Memory.Statistics.TablePages, Is.EqualTo(1));
    }

    [Test]
    public void MovesMemoryWithItsContents()
    {
        _memory.AddMemory(1, 100, 10);
        Assert.That(GuestMemory.TryWrite(ref _memory.Vm, new Gfn(103).Address, 0x1234), Is.True);
        Pfn? before = _memory.Access(103, write: true, out _);
        Assert.That(_memory.SetRegion(1, 105, 10, TestMemory.UserAddress(1, 0)), Is.EqualTo(Errno.Ok));

        Assert.That(_memory.Access(103, write: true, out FaultOutcome outcome), Is.Null);
        Assert.That(outcome, Is.EqualTo(FaultOutcome.Mmio));
        Assert.That(_memory.Access(108, write: true, out _)!.Value.Value, Is.EqualTo(before!.Value.Value));
        Assert.That(GuestMemory.TryRead(ref _memory.Vm, new Gfn(108).Address, out int value) ? value : 0,
            Is.EqualTo(0x1234));
    }

    [Test]
    public void HidesARetiredSlotBeforeItsMappingsGo()
    {
        // A fault that found the slot in time must not map it after the ioctl has removed its mappings.
        _memory.AddMemory(1, 0, 10);
        _memory.Process.AfterLookUp = () => _memory.SetRegion(1, 0, 0, 0);
        Assert.That(_memory.Fault(3, write: true), Is.EqualTo(FaultOutcome.Retry));
        Assert.That(_memory.Vm.Memory.Statistics.MappedPages, Is.Zero);
        Assert.That(_memory.Fault(3, write: true), Is.EqualTo(FaultOutcome.Mmio));
    }

    [Test]
    public void LetsNoFaultMapWhileASlotIsRetired()
    {
        _memory.AddMemory(1, 0, 10);
        _memory.Access(1, write: true, out _);
        List<FaultOutcome> outcomes = [];
        // The second hold of the lock publishes the new table: between the two the slot is retired.
        _memory.Machine.BeforeLock = () => _memory.Machine.BeforeLock = () =>
            outcomes.Add(_memory.Fault(3, write: true));
        Assert.That(_memory.SetRegion(1, 20, 10, TestMemory.UserAddress(1, 0)), Is.EqualTo(Errno.Ok));
        Assert.That(outcomes, Is.EqualTo(new[] { FaultOutcome.Retry }));
    }

    /// <summary>
    /// A large slot goes in parts. Between two of them Linux takes a page whose mapping went with the first: it finds
    /// none, so it asks for no flush.
    /// </summary>
    [Test]
    public void LeavesNothingInATlbBetweenTheParts()
    {
        _memory.Process.Map(User, 4);
        Assert.That(_memory.SetRegion(1, 0, 5UL << 20, User), Is.EqualTo(Errno.Ok));
        Assert.That(_memory.Access(1, write: true, out _), Is.Not.Null);
        bool between = false;
        _memory.Machine.BeforeLock = () => _memory.Machine.BeforeLock = () =>
        {
            between = true;
            _memory.Process.Unmap(User, 4);
        };
        Assert.That(_memory.SetRegion(1, 0, 0, 0), Is.EqualTo(Errno.Ok));
        Assert.That(between);
    }

    [Test]
    public void FreesTheOldTableOnlyWhenItsReadersAreGone()
    {
        _memory.AddMemory(1, 0, 10, flags: 1);
        int during = 0;
        _memory.Machine.OnSynchronize = () => during = _memory.Host.BlocksInUse;
        Assert.That(_memory.SetRegion(1, 0, 10, TestMemory.UserAddress(1, 0)), Is.EqualTo(Errno.Ok));
        Assert.That(during, Is.EqualTo(8), "two tables of three blocks each, the index, the bitmap");
        Assert.That(_memory.Host.BlocksInUse, Is.EqualTo(4));
    }

    [Test]
    public void HoldsAllSlots()
    {
        // In a scattered order; every id is used once.
        for (uint i = 0; i < 2000; i++)
        {
            uint slot = i * 7919 % 2000;
            Assert.That(_memory.SetRegion(slot, slot * 3UL, 2, User), Is.EqualTo(Errno.Ok));
        }
        for (uint slot = 0; slot < 2000; slot++)
        {
            Gpa inside = new Gfn(slot * 3UL + 1).Address;
            ref MemorySlot found = ref _memory.Vm.Memory.Slots.Find(inside);
            Assert.That((found.Id, found.Contains(inside)), Is.EqualTo((slot, true)));
            Gpa outside = inside + Page.Size;
            Assert.That(_memory.Vm.Memory.Slots.Find(outside).Contains(outside), Is.False);
            Assert.That(_memory.SetRegion(5000, slot * 3UL + 1, 2, User), Is.EqualTo(Errno.EEXIST));
        }
        // Every other one goes, and some chunks with them.
        for (uint slot = 0; slot < 2000; slot += slot < 1000 ? 2u : 1)
            Assert.That(_memory.SetRegion(slot, 0, 0, 0), Is.EqualTo(Errno.Ok));
        for (uint slot = 0; slot < 2000; slot++)
        {
            Gpa inside = new Gfn(slot * 3UL + 1).Address;
            bool stays = slot < 1000 && slot % 2 != 0;
            Assert.That(_memory.Vm.Memory.Slots.Find(inside).Contains(inside), Is.EqualTo(stays), $"slot {slot}");
            Assert.That(_memory.Vm.Memory.SlotById(slot).Size != 0, Is.EqualTo(stays));
        }
    }

    /// <summary>A slot more than a chunk holds, and each allocation on the way failing in turn.</summary>
    [Test]
    public void LosesNothingWhenAChunkCannotBeSplit()
    {
        for (uint slot = 0; slot < 127; slot++)
            Assert.That(_memory.SetRegion(slot, slot * 4UL, 2, User), Is.EqualTo(Errno.Ok));
        int failures = 0;
        for (; ; failures++)
        {
            int blocks = _memory.Host.BlocksInUse;
            _memory.Host.FailingAllocation = _memory.Host.Allocations + failures;
            int result = _memory.SetRegion(127, 2, 2, User);
            if (result == Errno.Ok)
                break;
            Assert.That((result, _memory.Host.BlocksInUse), Is.EqualTo((Errno.ENOMEM, blocks)));
        }
        Assert.That(failures, Is.GreaterThanOrEqualTo(4));
        Assert.That(_memory.Vm.Memory.Slots.ChunkCount, Is.EqualTo(2));
        _memory.Host.FailingAllocation = _memory.Host.Allocations + 3;
        Assert.That(_memory.SetRegion(1, 498, 2, User), Is.EqualTo(Errno.ENOMEM), "a move needs two chunks");
        Assert.That(_memory.Vm.Memory.Slots.Find(new Gfn(4).Address).Id, Is.EqualTo(1));
    }

    /// <summary>Random requests against a model that knows each page's owner.</summary>
    [Test]
    public void AgreesWithAFlatModel()
    {
        Gen<(uint Slot, ulong First, ulong Pages, uint Flags, int User)[]> requests =
            Gen.Select(Gen.UInt[0, 5], Gen.ULong[0, 20], Gen.ULong[0, 8], Gen.UInt[0, 3], Gen.Int[0, 8]).Array[1, 40];
        requests.Sample(list =>
        {
            using TestMemory memory = new();
            Dictionary<uint, (ulong First, ulong Pages, uint Flags, ulong User)> model = [];
            foreach ((uint slot, ulong first, ulong pages, uint flags, int sameUser) in list)
            {
                // Mostly the same user address, or no slot would ever be moved.
                ulong user = TestMemory.UserAddress(slot, sameUser == 0 ? 1UL : 0);
                int expected = Expect(model, slot, (first, pages, flags, user));
                Assert.That(memory.SetRegion(slot, first, pages, user, flags), Is.EqualTo(expected));
                for (ulong frame = 0; frame < 30; frame++)
                {
                    Gpa address = new Gfn(frame).Address;
                    MemorySlot found = memory.Vm.Memory.Slots.Find(address);
                    Assert.That(found.Contains(address) ? found.ToHva(address).Value : (ulong?)null,
                        Is.EqualTo(Lookup(model, frame)));
                }
            }
            memory.Destroy();
        }, iter: 500);

        static int Expect(
            Dictionary<uint, (ulong First, ulong Pages, uint Flags, ulong User)> model, uint slot,
            (ulong First, ulong Pages, uint Flags, ulong User) request)
        {
            bool exists = model.TryGetValue(slot, out (ulong First, ulong Pages, uint Flags, ulong User) old);
            if (request.Pages == 0)
                return model.Remove(slot) ? Errno.Ok : Errno.EINVAL;
            if (exists && (old.Pages, old.Flags & 2, old.User) != (request.Pages, request.Flags & 2, request.User))
                return Errno.EINVAL;
            for (ulong page = 0; page < request.Pages; page++)
            {
                if (model.Any(other => other.Key != slot && Covers(other.Value, request.First + page)))
                    return Errno.EEXIST;
            }
            model[slot] = request;
            return Errno.Ok;
        }

        static bool Covers((ulong First, ulong Pages, uint Flags, ulong User) slot, ulong frame) =>
            frame >= slot.First && frame < slot.First + slot.Pages;

        static ulong? Lookup(Dictionary<uint, (ulong First, ulong Pages, uint Flags, ulong User)> model, ulong frame)
        {
            foreach ((ulong First, ulong Pages, uint Flags, ulong User) slot in model.Values)
            {
                if (Covers(slot, frame))
                    return slot.User + ((frame - slot.First) << Page.Shift);
            }
            return null;
        }
    }
}
