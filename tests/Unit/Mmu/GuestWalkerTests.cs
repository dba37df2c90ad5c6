// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Mmu;

namespace SharpKvm.Tests.Mmu;

[TestFixture]
internal sealed class GuestWalkerTests
{
    private const int WritableFrames = 12;
    private const int Frames = 16;
    private const ulong Pg = Cr0.Pg;
    private const ulong Pae = Cr4.Pae;
    private const ulong La57 = Cr4.La57;
    private const ulong Lma = Efer.Lma;

    private static readonly PageAccess[] s_accesses =
    [
        PageAccess.Read, PageAccess.Write, PageAccess.Fetch,
        PageAccess.Read | PageAccess.Implicit, PageAccess.Write | PageAccess.Implicit,
    ];

    /// <summary>
    /// Random tables, registers and addresses: the same address or error code as the model, and afterwards every byte
    /// of guest memory the same, accessed and dirty flags included.
    /// </summary>
    [TestCase(0UL, 0UL, 0UL, TestName = "no paging")]
    [TestCase(Pg, 0UL, 0UL, TestName = "32-bit")]
    [TestCase(Pg, Pae, 0UL, TestName = "PAE")]
    [TestCase(Pg, Pae, Lma, TestName = "4-level")]
    [TestCase(Pg, Pae | La57, Lma, TestName = "5-level")]
    public void AgreesWithTheModel(ulong cr0, ulong cr4, ulong efer)
    {
        Random random = new(20240501);
        int found = 0;
        HashSet<uint> errors = [];
        for (int round = 0; round < 60; round++)
        {
            using TestMemory memory = new();
            memory.AddMemory(0, 0, WritableFrames);
            memory.AddMemory(1, WritableFrames, Frames - WritableFrames, flags: 2);
            byte physicalBits = (byte)random.Next(36, 49);
            byte[] image = RandomTables(random, wide: (cr4 & Pae) != 0, physicalBits, allowNoExecute: round % 4 != 0);
            Store(memory, image);

            for (int i = 0; i < 400; i++)
            {
                PagingState state = new()
                {
                    Cr0 = cr0 | Pick(random, Cr0.Wp),
                    Cr3 = ((ulong)random.Next(Frames) << Page.Shift) | ((ulong)random.Next(128) << 5),
                    Cr4 = cr4 | Pick(random, Cr4.Pse) | Pick(random, Cr4.Smep)
                        | Pick(random, Cr4.Smap) | Pick(random, Cr4.Pke),
                    Efer = efer | (round % 4 != 0 ? Efer.Nxe : Pick(random, Efer.Nxe)),
                    Pkru = (uint)random.NextInt64(),
                    Cpl = (byte)(random.Next(2) * 3),
                    PhysicalBits = physicalBits,
                    AlignmentCheck = random.Next(2) != 0,
                };
                ulong linear = (ulong)random.NextInt64(long.MinValue, long.MaxValue);
                PageAccess access = s_accesses[random.Next(s_accesses.Length)];

                PagingModel model = new(state, address => Entry(image, address, state), (address, value) =>
                {
                    if (address < WritableFrames * Page.Size)
                        SetEntry(image, address, value, state);
                });
                (ulong? address, uint error) = model.Translate(linear, access);
                Translation result = GuestWalker.Translate(ref memory.Vm, in state, new Gva(linear), access);

                string what = $"round {round}, access {i}: {linear:x} {access}";
                Assert.That(result.Succeeded ? result.Address.Value : (ulong?)null, Is.EqualTo(address), what);
                Assert.That((uint)result.Fault, Is.EqualTo(error), what);
                if (address != null)
                    found++;
                else
                    errors.Add(error);
            }
            Assert.That(Load(memory), Is.EqualTo(image), "guest memory after the round");
        }
        Assert.That(found, Is.GreaterThan(500), "the test hardly ever succeeds");
        if (cr0 != 0)
            Assert.That(errors, Is.SupersetOf(new uint[] { 0, 1, 2, 3, 4, 5, 6, 7 }));
    }

    /// <param name="flags">With accessed set, the first write is to the last level; without, to the first.</param>
    [TestCase(0x20)]
    [TestCase(0)]
    public void StartsAgainWhenAnEntryChangesUnderIt(int flags)
    {
        using TestMemory memory = new();
        PagingState state = IdentityTables(memory, (ulong)flags);
        // The first write to the page with the tables breaks a copy-on-write: in that moment another vCPU remaps.
        memory.Process.Share(TestMemory.UserAddress(0, 0), 8);
        memory.Machine.BeforeLock = () => Poke(memory, 0x3000 + 5 * 8, 0x2000 | 3);
        Translation result = GuestWalker.Translate(ref memory.Vm, in state, new Gva(0x5123), PageAccess.Write);
        Assert.That(result.Address.Value, Is.EqualTo(0x2123));
        Assert.That(Peek(memory, 0x3000 + 5 * 8), Is.EqualTo(0x2000UL | 0x63));
    }

    [Test]
    public void SetsNoFlagInAnEntryThatIsNotPresentAnyMore()
    {
        using TestMemory memory = new();
        PagingState state = IdentityTables(memory, 0);
        memory.Process.Share(TestMemory.UserAddress(0, 0), 8);
        // Such an entry belongs to the guest's swap: a flag would change what it means.
        memory.Machine.BeforeLock = () => Poke(memory, 0x1000, 0x2000 | 2);
        Assert.That(GuestWalker.Translate(ref memory.Vm, in state, new Gva(0), PageAccess.Read).Succeeded, Is.False);
        Assert.That(Peek(memory, 0x1000), Is.EqualTo(0x2002));
    }

    [Test]
    public void MarksItsOwnWritesDirty()
    {
        using TestMemory memory = new();
        PagingState state = IdentityTables(memory, 0);
        Assert.That(memory.SetRegion(0, 0, 8, TestMemory.UserAddress(0, 0), flags: 1), Is.EqualTo(Errno.Ok));
        Assert.That(GuestWalker.Translate(ref memory.Vm, in state, new Gva(0x5000), PageAccess.Read).Succeeded);
        Assert.That(memory.Vm.Memory.Slots.Find(default).DirtyBitmap.Span[0], Is.EqualTo(0b1111UL));
        // Now that the flags are set there is nothing more to write.
        memory.Vm.Memory.Slots.Find(default).DirtyBitmap.Span.Clear();
        Assert.That(GuestWalker.Translate(ref memory.Vm, in state, new Gva(0x5000), PageAccess.Read).Succeeded);
        Assert.That(memory.Vm.Memory.Slots.Find(default).DirtyBitmap.Span[0], Is.Zero);
    }

    [Test]
    public void TreatsTablesOutsideOfMemoryAsNotPresent()
    {
        using TestMemory memory = new();
        PagingState state = IdentityTables(memory, 0x60);
        state.Cr3 = 0x10_0000;
        Translation result = GuestWalker.Translate(ref memory.Vm, in state, new Gva(0), PageAccess.Write);
        Assert.That((result.Succeeded, result.Fault), Is.EqualTo((false, PageFaultCode.Write)));
        memory.Process.Unmap(TestMemory.UserAddress(0, 0), 8);
        state.Cr3 = 0;
        Assert.That(GuestWalker.Translate(ref memory.Vm, in state, new Gva(0), PageAccess.Read).Succeeded, Is.False);
    }

    /// <summary>Long-mode tables in frames 0 to 3 that map the first 2 MiB to themselves.</summary>
    private static PagingState IdentityTables(TestMemory memory, ulong flags)
    {
        memory.AddMemory(0, 0, 8);
        for (ulong level = 0; level < 3; level++)
            Poke(memory, level << Page.Shift, ((level + 1) << Page.Shift) | flags | 3);
        for (ulong page = 0; page < 512; page++)
            Poke(memory, 0x3000 + page * 8, (page << Page.Shift) | flags | 3);
        return new PagingState { Cr0 = Pg, Cr4 = Pae, Efer = Lma, PhysicalBits = 40 };
    }

    private static void Poke(TestMemory memory, ulong address, ulong value) =>
        UserMemory.TryWrite(new Hva(TestMemory.UserAddress(0, 0) + address), in value);

    private static ulong Peek(TestMemory memory, ulong address) =>
        GuestMemory.TryRead(ref memory.Vm, new Gpa(address), out ulong value) ? value : 0;

    /// <summary>Entries that mostly lead somewhere, with each special case often enough.</summary>
    public static byte[] RandomTables(Random random, bool wide, int physicalBits, bool allowNoExecute)
    {
        byte[] image = new byte[Frames * Page.Size];
        for (int offset = 0; offset < image.Length; offset += wide ? 8 : 4)
        {
            // Sometimes a frame beyond memory.
            ulong entry = (ulong)random.Next(Frames + (random.Next(20) == 0 ? 2 : 0)) << Page.Shift;
            entry |= Chance(random, 95, 1) | Chance(random, 80, 2) | Chance(random, 80, 4);
            entry |= (ulong)random.Next(8) << 9;
            entry |= Chance(random, 60, 0x20) | Chance(random, 50, 0x40) | Chance(random, 10, 0x80);
            entry |= Chance(random, 10, 0x100);
            if (random.Next(5) == 0)
            {
                // An entry fit for a large page or for the pointers of PAE.
                entry &= random.Next(2) == 0 ? ~0x1f_e000UL : ~0x1e6UL;
            }
            if (random.Next(50) == 0)
                entry |= 1UL << random.Next(13, wide ? 63 : 32);
            if (wide)
            {
                entry |= allowNoExecute ? Chance(random, 10, 1UL << 63) : Chance(random, 1, 1UL << 63);
                if (random.Next(3) == 0 && physicalBits > 40)
                    entry |= (ulong)random.Next(16) << 59;
                BinaryPrimitives.WriteUInt64LittleEndian(image.AsSpan(offset), entry);
            }
            else
            {
                BinaryPrimitives.WriteUInt32LittleEndian(image.AsSpan(offset), (uint)entry);
            }
        }
        return image;

        static ulong Chance(Random random, int percent, ulong bit) => random.Next(100) < percent ? bit : 0;
    }

    private static ulong Pick(Random random, ulong bit) => random.Next(2) == 0 ? bit : 0;

    public static ulong? Entry(byte[] image, ulong address, in PagingState state)
    {
        if (address >= (ulong)image.Length)
            return null;
        ReadOnlySpan<byte> place = image.AsSpan((int)address);
        return (state.Cr4 & Pae) != 0
            ? BinaryPrimitives.ReadUInt64LittleEndian(place)
            : BinaryPrimitives.ReadUInt32LittleEndian(place);
    }

    public static void SetEntry(byte[] image, ulong address, ulong value, in PagingState state)
    {
        Span<byte> place = image.AsSpan((int)address);
        if ((state.Cr4 & Pae) != 0)
            BinaryPrimitives.WriteUInt64LittleEndian(place, value);
        else
            BinaryPrimitives.WriteUInt32LittleEndian(place, (uint)value);
    }

    public static void Store(TestMemory memory, byte[] image)
    {
        int border = WritableFrames * Page.Size;
        Assert.That(memory.Process.Write(TestMemory.UserAddress(0, 0), image.AsSpan(0, border)));
        Assert.That(memory.Process.Write(TestMemory.UserAddress(1, 0), image.AsSpan(border)));
    }

    public static byte[] Load(TestMemory memory)
    {
        byte[] image = new byte[Frames * Page.Size];
        Assert.That(GuestMemory.Read(ref memory.Vm, default, image), Is.EqualTo(MemoryAccess.Done));
        return image;
    }
}
