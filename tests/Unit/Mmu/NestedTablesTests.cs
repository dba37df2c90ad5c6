// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Mmu;

namespace SharpKvm.Tests.Mmu;

[TestFixture]
internal sealed class NestedTablesTests
{
    private const ulong FrameLimit = 1UL << 36;
    private const ulong LargePages = 512;
    private const ulong HostWritable = 1UL << 52;

    private enum Operation
    {
        Map, MapWritable, MapLarge, AllowWrite, WriteProtect, Age, Remove,
    }

    /// <summary>What the model knows of a frame.</summary>
    private readonly record struct Mapping(ulong Frame, bool Writable, bool HostWritable, bool Accessed);

    /// <summary>Frames near the borders of tables of all levels, where mistakes would be.</summary>
    private static readonly Gen<ulong> s_frame = Gen.Select(
        Gen.OneOfConst<ulong>(0, 512, 1UL << 18, (1UL << 18) + 512, 1UL << 27, 3UL << 27, FrameLimit - 1024),
        Gen.OneOf(Gen.ULong[0, 3], Gen.ULong[0, 1023]),
        (start, offset) => start + offset);

    private static readonly Gen<(Operation, ulong Frame, ulong Length)> s_operation = Gen.Select(
        Gen.Enum<Operation>(), s_frame, Gen.OneOf(Gen.ULong[1, 4], Gen.ULong[1, 3000], Gen.ULong[1, FrameLimit]));

    [Test]
    public void AgreesWithAFlatMap() => s_operation.Array[1, 50].Sample(operations =>
    {
        using TestMemory memory = new();
        Model model = new();
        foreach ((Operation operation, ulong frame, ulong length) in operations)
        {
            Perform(memory, model, operation, frame, Math.Min(FrameLimit, frame + length), even: length % 2 == 0);
            Assert.That(Contents(memory), Is.EqualTo(model.Pages).AsCollection);
            Assert.That(memory.Vm.Memory.Statistics.MappedPages, Is.EqualTo((ulong)model.Pages.Count));
        }
        RemoveAll(memory);
    }, iter: 200);

    /// <summary>
    /// Two and three threads that map, split, allow writes and age at once, as the shared lock permits: the outcome is
    /// that of some order, and no table is lost.
    /// </summary>
    [Test]
    public void AgreesWithSomeOrderOfParallelOperations([Values(2, 3)] int threads)
    {
        // All in two tables' reach, so that threads meet.
        (Operation, ulong Frame)[] choices =
        [
            (Operation.Map, 0), (Operation.MapWritable, 0), (Operation.Map, 511), (Operation.MapLarge, 512),
            (Operation.Map, 513), (Operation.MapWritable, 514), (Operation.AllowWrite, 0), (Operation.AllowWrite, 513),
            (Operation.Age, 0), (Operation.Map, 1UL << 27), (Operation.MapLarge, 1UL << 27),
        ];
        Gen.OneOfConst(choices).Array[2 * threads].Sample(operations =>
        {
            using TestMemory memory = new();
            TablePool[] spares = new TablePool[threads];
            for (int thread = 0; thread < threads; thread++)
                Assert.That(spares[thread].TopUp(2 * NestedTables.TablesPerMapping));
            Parallel(threads, thread =>
            {
                memory.Host.Adopt();
                for (int i = thread; i < operations.Length; i += threads)
                    Change(memory, ref spares[thread], operations[i].Item1, operations[i].Frame);
            });
            for (int thread = 0; thread < threads; thread++)
                spares[thread].Free();
            string outcome = Describe(memory);
            Assert.That(Orders(operations, threads).Any(order => Sequential(order) == outcome), outcome);
            Assert.That(memory.Vm.Memory.Statistics.MappedPages, Is.EqualTo((ulong)Contents(memory).Count));
            RemoveAll(memory);
        }, iter: 150);
    }

    [Test]
    public void SaysWhenItNeedsATable()
    {
        using TestMemory memory = new();
        ulong leaf = Npt.Leaf(new Pfn(1), 1);
        Assert.That(NestedTables.Map<Npt>(ref memory.Vm.Memory, ref memory.Spare, new Gfn(7), 1, leaf),
            Is.EqualTo(MapResult.NeedsTable));
        Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
        Assert.That(NestedTables.Map<Npt>(ref memory.Vm.Memory, ref memory.Spare, new Gfn(7), 1, leaf),
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
            Assert.That(Npt.Leaf(new Pfn(0x12_3456_7), 1), Is.EqualTo(0x1234_5670_65UL));
            Assert.That(Npt.Leaf(new Pfn(0x12_3456_0 & ~511UL), 2), Is.EqualTo(0x1234_4000_e5UL));
            Assert.That(NestedTables.Writable, Is.EqualTo(2UL));
        });
    }

    private static void Perform(
        TestMemory memory, Model model, Operation operation, ulong frame, ulong end, bool even)
    {
        ref VmMemory tables = ref memory.Vm.Memory;
        Gfn first = new(frame), last = new(end);
        Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
        switch (operation)
        {
            case Operation.Map or Operation.MapWritable:
                bool writable = operation == Operation.MapWritable;
                // Now and then the same page again, else another.
                bool same = model.Pages.TryGetValue(frame, out Mapping old) && even;
                ulong page = same ? old.Frame : model.NextFrame++;
                MapResult small = NestedTables.Map<Npt>(
                    ref tables, ref memory.Spare, first, 1, Leaf(page, 1, writable, host: true));
                Assert.That(small, Is.EqualTo(
                    model.Pages.ContainsKey(frame) && !same ? MapResult.Occupied : MapResult.Mapped));
                model.Large.Remove(frame / LargePages);
                if (small == MapResult.Mapped)
                    model.Pages[frame] = new Mapping(page, writable || (same && old.Writable), true, true);
                break;
            case Operation.MapLarge:
                ulong start = frame & ~(LargePages - 1);
                ulong leaf = Leaf(start + (1UL << 20), 2, writable: even, host: true);
                MapResult large = NestedTables.Map<Npt>(ref tables, ref memory.Spare, first, 2, leaf);
                bool was = model.Large.Contains(start / LargePages);
                Assert.That(large == MapResult.Mapped || !was, "a large page that is there only gains rights");
                if (large == MapResult.Occupied)
                {
                    RemoveAndFree(memory, new Gfn(start), new Gfn(start + LargePages));
                    Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
                    large = NestedTables.Map<Npt>(ref tables, ref memory.Spare, first, 2, leaf);
                }
                Assert.That(large, Is.EqualTo(MapResult.Mapped));
                model.Large.Add(start / LargePages);
                for (ulong i = start; i < start + LargePages; i++)
                    model.Pages[i] = new Mapping(i + (1UL << 20), even || (was && model.Pages[i].Writable), true, true);
                break;
            case Operation.AllowWrite:
                int largest = even ? 3 : 1;
                List<ulong> gaining = [.. model.Reach(frame, frame + 1)];
                bool allowed = gaining.Count != 0 && (model.Pages[frame].Writable || gaining.Count == 1 || even);
                Assert.That(NestedTables.TryAllowWrite(ref tables, first, largest), Is.EqualTo(allowed));
                if (allowed)
                    gaining.ForEach(key => model.Pages[key] = model.Pages[key] with { Writable = true });
                break;
            case Operation.WriteProtect:
                List<ulong> losing = [.. model.Reach(frame, end)];
                Assert.That(NestedTables.WriteProtect(ref tables, first, last),
                    Is.EqualTo(losing.Any(key => model.Pages[key].Writable)));
                losing.ForEach(key => model.Pages[key] = model.Pages[key] with { Writable = false });
                break;
            case Operation.Age:
                List<ulong> aging = [.. model.Reach(frame, end)];
                bool young = aging.Any(key => model.Pages[key].Accessed);
                TablePool none = default;
                Assert.That(NestedTables.Sweep(ref tables, first, last, Sweeping.Look, Npt.Accessed, ref none),
                    Is.EqualTo(young));
                Assert.That(NestedTables.Sweep(ref tables, first, last, Sweeping.Take, Npt.Accessed, ref none),
                    Is.EqualTo(young));
                aging.ForEach(key => model.Pages[key] = model.Pages[key] with { Accessed = false });
                break;
            default:
                List<ulong> going = [.. model.Reach(frame, end)];
                RemoveAndFree(memory, first, last);
                going.ForEach(key => model.Pages.Remove(key));
                model.Large.RemoveWhere(block => !model.Pages.ContainsKey(block * LargePages));
                break;
        }
    }

    private static ulong Leaf(ulong frame, int level, bool writable, bool host) =>
        Npt.Leaf(new Pfn(frame), level) | (writable ? NestedTables.Writable : 0) | (host ? HostWritable : 0);

    /// <summary>What threads do at once: pages that follow from the frame, so that they agree on those.</summary>
    private static void Change(TestMemory memory, ref TablePool spare, Operation operation, ulong frame)
    {
        ref VmMemory tables = ref memory.Vm.Memory;
        ulong page = (1UL << 20) + frame;
        switch (operation)
        {
            case Operation.MapLarge:
                NestedTables.Map<Npt>(ref tables, ref spare, new Gfn(frame), 2, Leaf(page, 2, false, host: true));
                break;
            case Operation.AllowWrite:
                NestedTables.TryAllowWrite(ref tables, new Gfn(frame), 1);
                break;
            case Operation.Age:
                TablePool none = default;
                // Of one page: over several it is not one step, and others may come in between.
                NestedTables.Sweep(
                    ref tables, new Gfn(frame), new Gfn(frame + 1), Sweeping.Take, Npt.Accessed, ref none);
                break;
            default:
                NestedTables.Map<Npt>(ref tables, ref spare, new Gfn(frame), 1,
                    Leaf(page, 1, operation == Operation.MapWritable, host: true));
                break;
        }
    }

    private static void Parallel(int threads, Action<int> body)
    {
        using Barrier barrier = new(threads);
        Exception? failure = null;
        Thread[] all = [.. Enumerable.Range(0, threads).Select(number => new Thread(() =>
        {
            barrier.SignalAndWait();
            try
            {
                body(number);
            }
            catch (Exception exception)
            {
                failure = exception;
            }
        }))];
        foreach (Thread thread in all)
            thread.Start();
        foreach (Thread thread in all)
            thread.Join();
        Assert.That(failure, Is.Null);
    }

    /// <summary>All orders in which the threads' operations can follow each other.</summary>
    private static IEnumerable<(Operation, ulong)[]> Orders((Operation, ulong)[] operations, int threads)
    {
        int[] next = [.. Enumerable.Range(0, threads)];
        return Extend([]);

        IEnumerable<(Operation, ulong)[]> Extend((Operation, ulong)[] done)
        {
            if (done.Length == operations.Length)
                yield return done;
            for (int thread = 0; thread < threads; thread++)
            {
                if (next[thread] >= operations.Length)
                    continue;
                (Operation, ulong) operation = operations[next[thread]];
                next[thread] += threads;
                foreach ((Operation, ulong)[] order in Extend([.. done, operation]))
                    yield return order;
                next[thread] -= threads;
            }
        }
    }

    private static string Sequential((Operation, ulong Frame)[] operations)
    {
        using TestMemory memory = new();
        foreach ((Operation operation, ulong frame) in operations)
        {
            Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
            Change(memory, ref memory.Spare, operation, frame);
        }
        return Describe(memory);
    }

    private static string Describe(TestMemory memory)
    {
        SortedDictionary<ulong, Mapping> contents = Contents(memory);
        return memory.Vm.Memory.Statistics.TablePages + string.Concat(
            contents.Where(page => page.Key % LargePages is < 4 or > 509).Select(page => $" {page}"));
    }

    private static void RemoveAndFree(TestMemory memory, Gfn first, Gfn end)
    {
        TablePool retired = default;
        NestedTables.Remove(ref memory.Vm.Memory, first, end, ref retired);
        retired.Free();
    }

    private static void RemoveAll(TestMemory memory)
    {
        RemoveAndFree(memory, default, new Gfn(FrameLimit));
        Assert.That(memory.Vm.Memory.Statistics.TablePages, Is.EqualTo(1));
        Assert.That(memory.Vm.Memory.Statistics.MappedPages, Is.Zero);
        memory.Destroy();
    }

    /// <summary>All mapped pages, found by looking at every entry.</summary>
    private static SortedDictionary<ulong, Mapping> Contents(TestMemory memory)
    {
        SortedDictionary<ulong, Mapping> found = [];
        Walk(memory.Vm.Memory.Root.Value, 27, 0);
        return found;

        void Walk(ulong table, int shift, ulong first)
        {
            ReadOnlySpan<ulong> entries = KernelPages.Entries(new Hpa(table));
            for (int i = 0; i < entries.Length; i++)
            {
                ulong entry = entries[i];
                ulong target = entry & 0x000f_ffff_ffff_f000;
                ulong frame = first + ((ulong)i << shift);
                if (entry == 0)
                    continue;
                if (shift != 0 && (entry & 0x80) == 0)
                {
                    Walk(target, shift - 9, frame);
                    continue;
                }
                Assert.That((entry ^ target) & ~(0x22 | HostWritable), Is.EqualTo(shift == 0 ? 0x45 : 0xc5));
                for (ulong page = 0; page < 1UL << shift; page++)
                {
                    found.Add(frame + page, new Mapping((target >> Page.Shift) + page, (entry & 2) != 0,
                        (entry & HostWritable) != 0, (entry & 0x20) != 0));
                }
            }
        }
    }

    /// <summary>The flat map, and which blocks of it are large pages: what touches a part of one touches all.</summary>
    private sealed class Model
    {
        public SortedDictionary<ulong, Mapping> Pages { get; } = [];
        public HashSet<ulong> Large { get; } = [];
        public ulong NextFrame { get; set; } = 0x5000;

        public IEnumerable<ulong> Reach(ulong first, ulong end) => Pages.Keys.Where(key =>
        {
            ulong from = Large.Contains(key / LargePages) ? key & ~(LargePages - 1) : key;
            ulong to = Large.Contains(key / LargePages) ? from + LargePages : key + 1;
            return from < end && to > first;
        });
    }
}
