// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Host;
using SharpKvm.Mmu;

namespace SharpKvm.Tests.Mmu;

[TestFixture]
internal sealed class NestedTablesTests
{
    private const ulong FrameLimit = 1UL << 36;

    private enum Operation
    {
        Map, MapWritable, Unmap, WriteProtect, Remove,
    }

    /// <summary>Frames near the borders of tables of all levels, where mistakes would be.</summary>
    private static readonly Gen<ulong> s_frame = Gen.Select(
        Gen.OneOfConst<ulong>(0, 512, 1UL << 18, (1UL << 18) + 512, 1UL << 27, 3UL << 27, FrameLimit - 1024),
        Gen.OneOf(Gen.ULong[0, 3], Gen.ULong[0, 1023]),
        (start, offset) => start + offset);

    private static readonly Gen<(Operation, ulong Frame, ulong Length)> s_operation = Gen.Select(
        Gen.Enum<Operation>(), s_frame, Gen.OneOf(Gen.ULong[1, 4], Gen.ULong[1, 3000], Gen.ULong[1, FrameLimit]));

    [Test]
    public void AgreesWithAFlatMap() => s_operation.Array[1, 60].Sample(operations =>
    {
        using TestMemory memory = new();
        SortedDictionary<ulong, (ulong Frame, bool Writable)> model = [];
        ulong nextFrame = 0x5000;
        foreach ((Operation operation, ulong frame, ulong length) in operations)
        {
            ulong end = Math.Min(FrameLimit, frame + length);
            List<ulong> inRange = [.. model.Keys.Where(key => key >= frame && key < end)];
            switch (operation)
            {
                case Operation.Map or Operation.MapWritable:
                    bool writable = operation == Operation.MapWritable;
                    // Now and then the same page again, else another.
                    bool same = model.TryGetValue(frame, out (ulong Frame, bool Writable) old) && length % 2 == 0;
                    ulong page = same ? old.Frame : nextFrame++;
                    Assert.That(SpareTables.TopUp(ref memory.Vm));
                    MapResult expected = model.ContainsKey(frame) && !same ? MapResult.Replaced : MapResult.Mapped;
                    Assert.That(
                        NestedTables.Map<Npt>(ref memory.Vm.Memory, new Gfn(frame), new Pfn(page), writable),
                        Is.EqualTo(expected));
                    model[frame] = (page, writable || (same && old.Writable));
                    break;
                case Operation.Unmap:
                    Assert.That(
                        NestedTables.Unmap(ref memory.Vm.Memory, new Gfn(frame), new Gfn(end)),
                        Is.EqualTo(inRange.Count != 0));
                    inRange.ForEach(key => model.Remove(key));
                    break;
                case Operation.WriteProtect:
                    Assert.That(
                        NestedTables.WriteProtect(ref memory.Vm.Memory, new Gfn(frame), new Gfn(end)),
                        Is.EqualTo(inRange.Any(key => model[key].Writable)));
                    inRange.ForEach(key => model[key] = (model[key].Frame, false));
                    break;
                case Operation.Remove:
                    NestedTables.Remove(ref memory.Vm.Memory, new Gfn(frame), new Gfn(end));
                    inRange.ForEach(key => model.Remove(key));
                    break;
            }
            Assert.That(Contents(memory.Vm.Memory.Root.Value, 27, 0), Is.EqualTo(model).AsCollection);
            Assert.That(memory.Vm.Memory.Statistics.MappedPages, Is.EqualTo((ulong)model.Count));
        }
        NestedTables.Remove(ref memory.Vm.Memory, default, new Gfn(FrameLimit));
        Assert.That(memory.Vm.Memory.Statistics.TablePages, Is.EqualTo(1));
        memory.Vm.Memory.Retired.Free();
        memory.Destroy();
    }, iter: 300);

    [Test]
    public void SaysWhenItNeedsATable()
    {
        using TestMemory memory = new();
        Assert.That(NestedTables.Map<Npt>(ref memory.Vm.Memory, new Gfn(7), new Pfn(1), writable: true),
            Is.EqualTo(MapResult.NeedsTable));
        Assert.That(SpareTables.TopUp(ref memory.Vm));
        Assert.That(NestedTables.Map<Npt>(ref memory.Vm.Memory, new Gfn(7), new Pfn(1), writable: true),
            Is.EqualTo(MapResult.Mapped));
        memory.Destroy();
    }

    /// <summary>The bits of the APM's figures, written out.</summary>
    [Test]
    public void WritesTheFormatOfTheManual()
    {
        Assert.Multiple(() =>
        {
            Assert.That(Npt.Table(new Hpa(0x12_3456_7000)), Is.EqualTo(0x12_3456_7027UL));
            Assert.That(Npt.Leaf(new Pfn(0x12_3456_7), writable: true), Is.EqualTo(0x1234_5670_67UL));
            Assert.That(Npt.Leaf(new Pfn(0x12_3456_7), writable: false), Is.EqualTo(0x1234_5670_65UL));
        });
    }

    /// <summary>All leaf entries, found by looking at every entry.</summary>
    private static SortedDictionary<ulong, (ulong Frame, bool Writable)> Contents(ulong table, int shift, ulong first)
    {
        SortedDictionary<ulong, (ulong Frame, bool Writable)> found = [];
        ReadOnlySpan<ulong> entries = KernelPages.Entries(new Hpa(table));
        for (int i = 0; i < entries.Length; i++)
        {
            ulong target = entries[i] & 0x000f_ffff_ffff_f000;
            ulong frame = first + ((ulong)i << shift);
            if (entries[i] == 0)
                continue;
            if (shift == 0)
            {
                found.Add(frame, (target >> Page.Shift, (entries[i] & 2) != 0));
                continue;
            }
            foreach ((ulong key, (ulong, bool) value) in Contents(target, shift - 9, frame))
                found.Add(key, value);
        }
        return found;
    }
}
