// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;
using FaultOutcome = SharpKvm.Mmu.FaultOutcome;

namespace SharpKvm.Tests.Mmu;

/// <summary>The whole room at once: guest, core, VMM and Linux each do what they like with the same memory.</summary>
[TestFixture]
internal sealed class RandomOperationsTests
{
    private const int Slots = 3;
    private const ulong Pages = 12;
    private const ulong Bitmap = 0x6000_0000_0000;

    private enum Operation
    {
        GuestRead, GuestWrite, GuestWriteRacing, CoreRead, CoreWrite, SetRegion, DeleteRegion, DirtyLog,
        Map, Unmap, Protect, Share, Migrate,
    }

    private static readonly Gen<(Operation, uint Slot, ulong Page, ulong Length, uint Flags)[]> s_operations =
        Gen.Select(Gen.Enum<Operation>(), Gen.UInt[0, Slots - 1], Gen.ULong[0, Pages - 1], Gen.ULong[1, Pages],
            Gen.UInt[0, 3]).Array[1, 120];

    /// <summary>
    /// Whatever happens, no translation outlives the page it was made for, no right exceeds the process's own, what
    /// one side writes the other reads, and nothing leaks.
    /// </summary>
    [Test]
    public void KeepsTheGuestWithinTheProcess() => s_operations.Sample(operations =>
    {
        using TestMemory memory = Prepare();
        foreach ((Operation operation, uint slot, ulong page, ulong length, uint flags) in operations)
        {
            Perform(memory, operation, slot, page, length, flags);
            memory.CheckInvariants();
        }
        memory.Destroy();
    }, iter: 1500);

    /// <summary>
    /// A fixed scenario with each of its allocations failing in turn, alone or with all that follow: an error comes
    /// back, the state stays consistent, and nothing leaks.
    /// </summary>
    [Test]
    public void SurvivesEveryFailedAllocation([Values] bool failsFromThere)
    {
        int allocations;
        for (int failing = 0; ; failing++)
        {
            using SimulatedHost host = new() { FailingAllocation = failing, FailsFromThere = failsFromThere };
            SimulatedVm machine = new(host);
            int result = VmMemory.Init(ref machine.Vm, TestMemory.PhysicalBits);
            Assert.That(result, Is.EqualTo(failing < 4 ? Errno.ENOMEM : Errno.Ok));
            if (failing < 4)
            {
                VmMemory.Destroy(ref machine.Vm);
                host.AssertNothingInUse();
                continue;
            }

            TestMemory memory = new(host, machine);
            host.Process.Map(Bitmap, 1);
            for (uint slot = 0; slot < Slots; slot++)
            {
                host.Process.Map(TestMemory.UserAddress(slot, 0), Pages);
                result = memory.SetRegion(slot, (ulong)slot << 28, Pages, TestMemory.UserAddress(slot, 0), flags: 1);
                Assert.That(result, Is.AnyOf(Errno.Ok, Errno.ENOMEM));
                if (memory.Access((ulong)slot << 28, write: true, out FaultOutcome outcome) == null)
                    Assert.That(outcome, Is.AnyOf(FaultOutcome.NoMemory, FaultOutcome.Mmio));
                Assert.That(memory.GetDirtyLog(slot, Bitmap), Is.AnyOf(Errno.Ok, Errno.ENOMEM, Errno.ENOENT));
                memory.CheckInvariants();
            }
            Assert.That(memory.SetRegion(0, 50, Pages, TestMemory.UserAddress(0, 0)), Is.AnyOf(Errno.Ok, Errno.ENOMEM));
            memory.CheckInvariants();
            memory.Destroy();
            allocations = host.Allocations;
            if (failing >= allocations)
                break;
        }
        Assert.That(allocations, Is.GreaterThan(15));
    }

    private static TestMemory Prepare()
    {
        TestMemory memory = new();
        memory.Process.Map(Bitmap, 1);
        for (uint slot = 0; slot < Slots; slot++)
            memory.AddMemory(slot, First(slot, 0), Pages, flags: slot % 2);
        return memory;
    }

    /// <summary>Far from the other slots and at the border of a table, so that moves cross one.</summary>
    private static ulong First(uint slot, ulong offset) => ((ulong)slot << 27) + 512 - Pages / 2 + offset;

    private static void Perform(
        TestMemory memory, Operation operation, uint slot, ulong page, ulong length, uint flags)
    {
        ref SharpKvm.Vm.Vm vm = ref memory.Vm;
        ulong frame = First(slot, page);
        ulong user = TestMemory.UserAddress(slot, page);
        Gpa address = new Gfn(frame).Address + 8;
        switch (operation)
        {
            case Operation.GuestRead:
                memory.Access(frame, write: false, out _);
                break;
            case Operation.GuestWrite:
                GuestWrite(memory, frame, length);
                break;
            case Operation.GuestWriteRacing:
                // In the middle of the fault Linux or the VMM does something else.
                Operation[] others = [Operation.Unmap, Operation.Share, Operation.Migrate, Operation.DeleteRegion,
                    Operation.SetRegion, Operation.Protect];
                memory.Process.AfterLookUp = () => Perform(
                    memory, others[(int)(length % (ulong)others.Length)], slot, page, length, flags);
                GuestWrite(memory, frame, length);
                memory.Process.AfterLookUp = null;
                break;
            case Operation.CoreRead:
                GuestMemory.TryRead(ref vm, address, out ulong _);
                break;
            case Operation.CoreWrite:
                if (!GuestMemory.TryWrite(ref vm, address, in length))
                    break;
                if (memory.Access(frame, write: false, out _) is { } seen)
                {
                    Assert.That(BitConverter.ToUInt64(memory.Process.FrameOf(seen).Data, 8), Is.EqualTo(length),
                        "the guest reads what the core wrote");
                }
                break;
            case Operation.SetRegion:
                memory.SetRegion(slot, First(slot, length % 3 == 0 ? page : 0), Pages,
                    TestMemory.UserAddress(slot, 0), flags);
                break;
            case Operation.DeleteRegion:
                memory.SetRegion(slot, 0, 0, 0);
                break;
            case Operation.DirtyLog:
                int result = memory.GetDirtyLog(slot, page == 0 ? 0 : Bitmap);
                Assert.That(result, Is.AnyOf(Errno.Ok, Errno.ENOENT, Errno.EFAULT));
                break;
            case Operation.Map:
                memory.Process.Map(user, length, writable: flags != 0);
                break;
            case Operation.Unmap:
                memory.Process.Unmap(user, length);
                break;
            case Operation.Protect:
                memory.Process.Protect(user, length, writable: flags % 2 == 0);
                break;
            case Operation.Share:
                memory.Process.Share(user, length);
                break;
            case Operation.Migrate:
                memory.Process.Migrate(user, length);
                break;
        }
    }

    private static void GuestWrite(TestMemory memory, ulong frame, ulong value)
    {
        if (memory.Access(frame, write: true, out _) is not { } page)
            return;
        BitConverter.TryWriteBytes(memory.Process.FrameOf(page).Data, value);
        Assert.That(GuestMemory.TryRead(ref memory.Vm, new Gfn(frame).Address, out ulong read) ? read : ~0UL,
            Is.EqualTo(value), "the core reads what the guest wrote");
    }
}
