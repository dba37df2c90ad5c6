// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Mmu;
using FaultOutcome = SharpKvm.Mmu.FaultOutcome;

namespace SharpKvm.Tests.Mmu;

/// <summary>
/// A guest with random tables, which it also writes to, on shadow tables: what it gets is compared with a model of
/// paging that knows nothing of them. Linux moves its pages and the VMM reads its log meanwhile.
/// </summary>
[TestFixture]
internal sealed class ShadowPagingTests
{
    private const int WritableFrames = 12, Frames = 16, Accesses = 120;
    private const ulong Pg = Cr0.Pg, Pae = Cr4.Pae, La57 = Cr4.La57, Lma = Efer.Lma;
    private const ulong LargeFrame = 512, LargePages = 1024;
    private const ulong Bitmap = 0x6000_0000_0000;

    /// <summary>More than 10,000 accesses for each mode.</summary>
    [TestCase(0UL, 0UL, 0UL, TestName = "shadow of no paging")]
    [TestCase(Pg, 0UL, 0UL, TestName = "shadow of 32-bit paging")]
    [TestCase(Pg, Pae, 0UL, TestName = "shadow of PAE paging")]
    [TestCase(Pg, Pae, Lma, TestName = "shadow of 4-level paging")]
    [TestCase(Pg, Pae | La57, Lma, TestName = "shadow of 5-level paging")]
    public void GivesWhatTheGuestsOwnTablesSay(ulong cr0, ulong cr4, ulong efer)
    {
        Statistics all = new();
        Gen.Int.Sample(seed =>
        {
            using Run run = new(new Random(seed), cr0, cr4, efer);
            run.Go();
            lock (all)
                all.Add(run.Seen);
        }, iter: 150);
        TestContext.Out.WriteLine(all);
        Assert.That(all.Compared, Is.GreaterThan(10_000));
        Assert.That(all.Mapped, Is.GreaterThan(1000));
        if (cr0 == 0)
            return;
        Assert.That(all.Errors, Is.SupersetOf(new uint[] { 0, 1, 2, 3, 4, 5, 6, 7 }));
        Assert.That(all.Emulated, Is.GreaterThan(50), "writes to tables of higher levels");
        Assert.That(all.Stale, Is.GreaterThan(50), "accesses between a write to a table and a flush");
    }

    /// <summary>Their instruction TLBs cannot hold a page in two sizes at once (iTLB multihit).</summary>
    [Test]
    public void LargePagesAreNotForACpuWithTheErratum([Values] bool erratum)
    {
        Ept.ExecutesSmallOnly = erratum;
        using TestMemory memory = new();
        ShadowProcessor processor = new(memory, 64) { State = { Cr0 = Cr0.Pe, PhysicalBits = 40 } };
        memory.AddMemory(0, 0, LargePages);
        memory.Process.MakeLarge(TestMemory.UserAddress(0, LargeFrame));
        processor.Flush();
        for (ulong page = 0; page < 4; page++)
            processor.Access((LargeFrame + page) << Page.Shift, PageAccess.Fetch);
        Assert.That(processor.Faults, Is.EqualTo(erratum ? 4 : 1));
    }

    /// <summary>INVLPG after each change: neither the write to the table nor the one to the page faults each time, and
    /// none is missed.</summary>
    [Test]
    public void ATableThatTheGuestIsChangingStaysWritable()
    {
        const int Rounds = 64;
        using FourLevels guest = new();
        guest[8] = 8 << Page.Shift | Used;
        guest.Processor.Flush();

        Pfn? before = guest.Access(8, PageAccess.Write);
        for (int round = 0; round < Rounds; round++)
        {
            guest.Change(8, (byte)(0x90 - round % 2 * 0x10));
            guest.Processor.Invalidate(8 << Page.Shift);
            Pfn? after = guest.Access(8, PageAccess.Write);
            Assert.That(after, Is.Not.Null.And.Not.EqualTo(before));
            before = after;
        }
        Assert.That(guest.Processor.Faults, Is.LessThan(Rounds / 4));
        Assert.That(guest.Processor.Emulated, Is.Zero);
    }

    /// <summary>Of two changed entries one is flushed; the other may be out of date until it is, too.</summary>
    [Test]
    public void FlushingAPageLooksAtItsEntryAlone()
    {
        using FourLevels guest = new();
        guest[8] = 8 << Page.Shift | Used;
        guest[9] = 9 << Page.Shift | Used;
        guest.Processor.Flush();
        Pfn? eight = guest.Access(8, PageAccess.Write), nine = guest.Access(9, PageAccess.Write);
        guest.Change(8, 0xa0);
        guest.Change(9, 0xb0);

        guest.Processor.Invalidate(8 << Page.Shift);
        int faults = guest.Processor.Faults;
        Assert.That(guest.Access(8, PageAccess.Write), Is.EqualTo(guest.Frame(10)), "the page that was flushed");
        Assert.That(guest.Processor.Faults, Is.EqualTo(faults), "faults of the page that was flushed");
        Assert.That(guest.Walked(9)?.Frame, Is.EqualTo(nine), "the other page");

        guest.Processor.Invalidate(9 << Page.Shift);
        Assert.That(guest.Access(9, PageAccess.Write), Is.EqualTo(guest.Frame(11)), "the other page, flushed");
        guest.Change(8, 0x80);
        guest.Processor.Flush();
        Assert.That(guest.Access(8, PageAccess.Write), Is.EqualTo(eight), "all flushed");
    }

    /// <summary>INVLPG of a page that is there no more, has a reserved bit, or became the guest's table.</summary>
    [Test]
    public void FlushingAPageGivesNoRightTooMany()
    {
        using FourLevels guest = new();
        guest[8] = 8 << Page.Shift | Used;
        guest.Processor.Flush();
        guest.Access(8, PageAccess.Write);
        guest.Access(FourLevels.LastTable, PageAccess.Write);

        foreach (ulong entry in (ulong[])[0, 8 << Page.Shift | Used & ~Accessed, 1ul << 40 | 8 << Page.Shift | Used])
        {
            guest[8] = entry;
            guest.Processor.Invalidate(8 << Page.Shift);
            Assert.That(guest.Walked(8), Is.Null, $"{entry:x}");
        }
        foreach (ulong entry in (ulong[])[8 << Page.Shift | Used & ~Dirty, 8 << Page.Shift | Used & ~Writable,
            1 << Page.Shift | Used])
        {
            guest[8] = entry;
            guest.Processor.Invalidate(8 << Page.Shift);
            Assert.That(guest.Walked(8) is { Writable: true }, Is.False, $"{entry:x}");
        }
    }

    /// <summary>One fault fills an aligned group of eight entries, as far as the guest has used them.</summary>
    [Test]
    public void AFaultFillsNeighboursThatTheGuestHasUsed()
    {
        const ulong Clean = 9, Unused = 10, ReadOnly = 11, Supervisor = 12, Table = 13, Wide = 14, Absent = 15, Far = 16,
            WideFrame = Frames;
        using FourLevels guest = new();
        ulong[] entries =
        [
            8 << Page.Shift | Used, 9 << Page.Shift | Used & ~Dirty, 10 << Page.Shift | Used & ~Accessed,
            11 << Page.Shift | Used & ~Writable, 12 << Page.Shift | Used & ~User, 1 << Page.Shift | Used,
            WideFrame << Page.Shift | Used, 15 << Page.Shift | Used & ~1ul, 8 << Page.Shift | Used,
        ];
        guest[20] = 1 << Page.Shift | Used;
        guest[28] = WideFrame << Page.Shift | Used;
        for (int i = 0; i < entries.Length; i++)
            guest[8 + (ulong)i] = entries[i];
        guest.Processor.Flush();
        guest.Access(20, PageAccess.Read);
        guest.Access(28, PageAccess.Read);
        guest.Processor.State.PhysicalBits = 16;
        int faults = guest.Processor.Faults;
        guest.Access(8, PageAccess.Write);

        Assert.That(guest.Walked(Clean), Is.EqualTo(new ShadowProcessor.Found(guest.Frame(9), false, true, false, 0)));
        Assert.That(guest.Walked(ReadOnly), Is.EqualTo(new ShadowProcessor.Found(guest.Frame(11), false, true, false, 0)));
        Assert.That(guest.Walked(Supervisor), Is.EqualTo(new ShadowProcessor.Found(guest.Frame(12), true, false, false, 0)));
        Assert.That(guest.Walked(Table), Is.EqualTo(new ShadowProcessor.Found(guest.Frame(1), false, true, false, 0)));
        foreach (ulong page in (ulong[])[Unused, Wide, Absent, Far])
            Assert.That(guest.Walked(page), Is.Null, $"page {page}");
        for (int i = 0; i < entries.Length; i++)
            Assert.That(guest[8 + (ulong)i], Is.EqualTo(entries[i]), $"the guest's entry {8 + i}");
        // Its frame and some of its neighbours are the nested tables' business, too: one fault for both.
        Assert.That(guest.Processor.Faults, Is.EqualTo(faults + 1));
    }

    private const ulong Writable = 2, User = 4, Accessed = 0x20, Dirty = 0x40, Used = 0x67;

    /// <summary>A guest in long mode with one table for each level, in the frames from 1 on, that map 2 MiB.</summary>
    private sealed class FourLevels : IDisposable
    {
        public const ulong LastTable = 4;
        private readonly TestMemory _memory = new();

        public FourLevels()
        {
            Processor = new ShadowProcessor(_memory, 64)
            {
                State = { Cr0 = Cr0.Pe | Pg, Cr4 = Pae, Efer = Lma | Efer.Lme, Cr3 = 1 << Page.Shift, PhysicalBits = 40 },
            };
            _memory.AddMemory(0, 0, Frames + 1);
            // The process has touched all.
            for (ulong frame = 0; frame <= Frames; frame++)
                Write(frame << Page.Shift, 0);
            for (ulong table = 1; table < LastTable; table++)
                Write(table << Page.Shift, (table + 1) << Page.Shift | Used);
            this[LastTable] = LastTable << Page.Shift | Used;
        }

        public ShadowProcessor Processor { get; }

        /// <summary>The entry for a page, which the guest's memory has; unseen by what protects tables.</summary>
        public ulong this[ulong page]
        {
            get
            {
                Assert.That(GuestMemory.TryRead(ref _memory.Vm, new Gpa(At(page)), out ulong entry), Is.True);
                return entry;
            }
            set => Write(At(page), value);
        }

        /// <summary>The guest writes to bits 8 to 15 of an entry.</summary>
        public void Change(ulong page, byte value) => Processor.Access(At(page) + 1, PageAccess.Write, value);

        public Pfn? Access(ulong page, PageAccess access) => Processor.Access(page << Page.Shift, access).Frame;

        /// <summary>What hardware finds in the shadow tables.</summary>
        public ShadowProcessor.Found? Walked(ulong page) => Processor.Walk(page << Page.Shift);

        /// <summary>The process's page behind a frame.</summary>
        public Pfn Frame(ulong frame) => _memory.Process.Present(TestMemory.UserAddress(0, frame), out _)!.Number;

        public void Dispose()
        {
            _memory.Vcpu.Shadow.Free();
            _memory.Destroy();
            _memory.Dispose();
        }

        private static ulong At(ulong page) => (LastTable << Page.Shift) + page * 8;

        private void Write(ulong address, ulong entry) =>
            Assert.That(GuestMemory.TryWrite(ref _memory.Vm, new Gpa(address), in entry), Is.True);
    }

    [TearDown]
    public void ForgetTheCpu() => Ept.ExecutesSmallOnly = false;

    private sealed class Statistics
    {
        public int Compared, Mapped, Emulated, Stale, Faults;
        public HashSet<uint> Errors { get; } = [];

        public void Add(Statistics other)
        {
            Compared += other.Compared;
            Mapped += other.Mapped;
            Emulated += other.Emulated;
            Stale += other.Stale;
            Faults += other.Faults;
            Errors.UnionWith(other.Errors);
        }

        public override string ToString() => $"{Compared} compared, {Mapped} of them mapped, {Faults} faults, "
            + $"{Emulated} writes emulated, {Stale} accesses with stale tables, errors {string.Join(' ', Errors)}";
    }

    /// <summary>One guest.</summary>
    private sealed class Run : IDisposable
    {
        private readonly TestMemory _memory = new();
        private readonly ShadowProcessor _processor;
        private readonly Random _random;
        private readonly (ulong Cr0, ulong Cr4, ulong Efer) _mode;
        private readonly bool _allowNoExecute, _logs, _large;
        /// <summary>Pages that were found, to come back to, and where the entries lie that led to them.</summary>
        private readonly List<(ulong Linear, ulong Frame)> _known = [];
        private readonly List<(ulong At, ulong Linear)> _entries = [];
        /// <summary>An address that was found by an entry which has just been written to.</summary>
        private ulong? _affected;
        private byte[] _image;
        private byte[] _logged;
        /// <summary>A table was written to, and not all that it may have meant is flushed.</summary>
        private bool _isStale;
        /// <summary>What PAE paging begins with, when CR3 was loaded.</summary>
        private (UInt128, UInt128) _pointers;

        public Run(Random random, ulong cr0, ulong cr4, ulong efer)
        {
            _random = random;
            _mode = (cr0, cr4, efer);
            _allowNoExecute = random.Next(4) != 0;
            _logs = random.Next(2) == 0;
            // Few enough for tables to be given up, enough for one walk.
            _processor = new ShadowProcessor(_memory, random.Next(2) == 0 ? 64 : 256);
            _memory.AddMemory(0, 0, WritableFrames, _logs ? 1u : 0);
            _memory.AddMemory(1, WritableFrames, Frames - WritableFrames, kvm_userspace_memory_region.KVM_MEM_READONLY);
            _memory.Process.Map(Bitmap, 1);
            _large = random.Next(2) == 0;
            if (_large)
                AddLargePages();
            byte physicalBits = (byte)random.Next(36, 49);
            _image = GuestWalkerTests.RandomTables(random, wide: (cr4 & Pae) != 0, physicalBits, _allowNoExecute);
            if (_large)
                LeadToLargePages();
            if ((cr4 & Pae) != 0 && (efer & Lma) == 0)
                MakePointers();
            GuestWalkerTests.Store(_memory, _image);
            _logged = _image;
            if (_logs)
                _memory.GetDirtyLog(0, Bitmap);
            _processor.State.PhysicalBits = physicalBits;
            ChangeTables();
        }

        public Statistics Seen { get; } = new();

        /// <summary>The last page, which is read-only, has some good tables for CR3 in PAE mode.</summary>
        private static ulong PointerTable(int number) => (Frames - 1) * Page.Size + (ulong)number * 32;

        /// <summary>4 MiB in the process's large pages.</summary>
        private void AddLargePages()
        {
            _memory.AddMemory(2, LargeFrame, LargePages);
            for (ulong page = 0; page < LargePages; page += 512)
                _memory.Process.MakeLarge(TestMemory.UserAddress(2, page));
        }

        /// <summary>By entries for large pages, and by such that take a part of them for a table.</summary>
        private void LeadToLargePages()
        {
            int size = (_mode.Cr4 & Pae) != 0 ? 8 : 4;
            for (int i = 0; i < 4000; i++)
            {
                ulong large = ((ulong)_random.Next(3) << 21) | 0x87 | (ulong)_random.Next(4) << 5;
                ulong table = (LargeFrame + (ulong)_random.Next((int)LargePages)) << Page.Shift | 7;
                ulong entry = _random.Next(8) != 0 ? large : table;
                int place = _random.Next(Frames * Page.Size / size) * size;
                BitConverter.TryWriteBytes(_image.AsSpan(place, 4), (uint)entry);
            }
        }

        private void MakePointers()
        {
            for (int i = 0; i < 8 * 4; i++)
            {
                ulong pointer = (ulong)_random.Next(Frames) << Page.Shift | (_random.Next(8) != 0 ? 1UL : 0);
                BinaryPrimitives.WriteUInt64LittleEndian(_image.AsSpan((int)PointerTable(0) + i * 8), pointer);
            }
        }

        public void Go()
        {
            for (int i = 0; i < Accesses; i++)
            {
                switch (_random.Next(12))
                {
                    case 0:
                        ChangeTables();
                        break;
                    case 1:
                        Reload();
                        break;
                    case 2:
                        LinuxActs();
                        break;
                    case 3 when _logs:
                        ReadLog();
                        break;
                }
                Access();
                CheckInvariants();
            }
            Reload();
            if (_logs)
                ReadLog();
            Seen.Emulated = _processor.Emulated;
            Seen.Faults = _processor.Faults;
            _memory.Vcpu.Shadow.Free();
            _memory.Destroy();
        }

        public void Dispose() => _memory.Dispose();

        /// <summary>Other control registers, which flush the TLB.</summary>
        private void ChangeTables()
        {
            ref PagingState state = ref _processor.State;
            state.Cr0 = _mode.Cr0 | Pick(Cr0.Wp);
            state.Cr3 = ((ulong)_random.Next(Frames) << Page.Shift)
                | ((_mode.Efer & Lma) == 0 ? (ulong)_random.Next(128) << 5 : 0);
            if (_random.Next(4) != 0)
                state.Cr3 = PointerTable((int)(state.Cr3 >> 5) & 7);
            state.Cr4 = _mode.Cr4 | Pick(Cr4.Pse) | Pick(Cr4.Smep) | Pick(Cr4.Smap) | Pick(Cr4.Pke);
            _known.Clear();
            _entries.Clear();
            state.Efer = _mode.Efer | (_allowNoExecute ? Efer.Nxe : Pick(Efer.Nxe));
            Reload();
        }

        private void Reload()
        {
            _processor.Flush();
            _image = GuestWalkerTests.Load(_memory);
            _isStale = false;
            _pointers = Pointers();
        }

        private (UInt128, UInt128) Pointers()
        {
            Gpa at = new(_processor.State.Cr3 & ~31UL);
            Assert.That(GuestMemory.TryRead(ref _memory.Vm, at, out (UInt128, UInt128) pointers));
            return pointers;
        }

        private void LinuxActs()
        {
            ulong page = (ulong)_random.Next(WritableFrames), count = Math.Min(3, WritableFrames - page);
            switch (_random.Next(_large ? 6 : 4))
            {
                case > 3:
                    _memory.Process.Migrate(TestMemory.UserAddress(2, (ulong)_random.Next((int)LargePages)), 1);
                    break;
                case 0:
                    _memory.Process.Share(TestMemory.UserAddress(0, page), count);
                    break;
                case 1:
                    _memory.Process.Migrate(TestMemory.UserAddress(0, page), count);
                    break;
                case 2:
                    ulong user = TestMemory.UserAddress(0, page);
                    // The first look clears the flags: the second finds what was used since.
                    Invalidation.Age<Npt>(ref _memory.Vm, new Hva(user), new Hva(user + Page.Size));
                    break;
                default:
                    // Elsewhere and back: all that is known of the slot's frames goes.
                    Assert.That(_memory.SetRegion(0, 0x1000, WritableFrames, TestMemory.UserAddress(0, 0),
                        _logs ? 1u : 0), Is.Zero);
                    Assert.That(_memory.SetRegion(0, 0, WritableFrames, TestMemory.UserAddress(0, 0),
                        _logs ? 1u : 0), Is.Zero);
                    break;
            }
        }

        /// <summary>Each page that differs from what it was at the last log is in this one.</summary>
        private void ReadLog()
        {
            byte[] now = GuestWalkerTests.Load(_memory);
            Assert.That(_memory.GetDirtyLog(0, Bitmap), Is.Zero);
            Span<byte> bitmap = stackalloc byte[8];
            Assert.That(_memory.Process.Read(Bitmap, bitmap));
            for (int page = 0; page < WritableFrames; page++)
            {
                bool same = now.AsSpan(page * Page.Size, Page.Size).SequenceEqual(
                    _logged.AsSpan(page * Page.Size, Page.Size));
                Assert.That(same || (bitmap[page / 8] >> page % 8 & 1) != 0, $"page {page} was written, not logged");
            }
            _logged = now;
        }

        private void Access()
        {
            ref PagingState state = ref _processor.State;
            // A CPU has these from when CR3 was loaded, or reads them again: a guest that changes them loads it.
            if ((_mode.Cr4 & Pae) != 0 && (_mode.Efer & Lma) == 0 && Pointers() != _pointers)
                Reload();
            state.Cpl = (byte)(_random.Next(2) * 3);
            state.Pkru = (uint)_random.NextInt64();
            state.AlignmentCheck = _random.Next(2) != 0;
            ulong linear = (ulong)_random.NextInt64(long.MinValue, long.MaxValue);
            if ((state.Efer & Lma) == 0)
                linear &= uint.MaxValue;
            // Some places often, so that tables are found again, and low addresses, where large pages have memory.
            if (_random.Next(2) == 0)
                linear &= 0x8080_8060_3fff;
            if (_random.Next(4) == 0)
                linear &= _large ? 0x7f_ffffUL : 0xffff;
            linear = _affected ?? ComeBack(linear);
            if (_affected != null && _random.Next(2) == 0)
                Reload();
            _affected = null;
            PageAccess access = _random.Next(3) switch
            {
                0 => PageAccess.Read, 1 => PageAccess.Write, _ => PageAccess.Fetch,
            };
            if (state.Cpl == 3 && access != PageAccess.Fetch && _random.Next(8) == 0)
                access |= PageAccess.Implicit;
            byte? value = !access.HasFlag(PageAccess.Write) ? null : _large ? (byte)0 : RandomByte(linear);

            if (_isStale && _random.Next(3) == 0)
                _processor.Invalidate(linear);
            else if (_isStale)
            {
                _processor.Access(linear, access, value);
                Seen.Stale++;
                return;
            }

            if (_isStale)
                _image = GuestWalkerTests.Load(_memory);
            PagingState copy = state;
            PagingModel model = new(copy, ReadEntry, (at, entry) =>
            {
                if (at < WritableFrames * Page.Size)
                    GuestWalkerTests.SetEntry(_image, at, entry, copy);
            });
            (ulong? address, uint error) = model.Translate(linear, access);

            ulong? ReadEntry(ulong at)
            {
                if (at < WritableFrames * Page.Size)
                    _entries.Add((at, linear));
                return GuestWalkerTests.Entry(_image, at, copy);
            }

            (Pfn? frame, uint? fault, FaultOutcome outcome) = _processor.Access(linear, access, value);
            if (frame != null && address is { } physical)
                _known.Add((linear & ~Page.OffsetMask, physical >> Page.Shift));
            Compare($"{linear:x} {access} CPL {state.Cpl}", address, error, frame, fault, outcome, value);
        }

        /// <summary>Often a page of before, if it can be at an entry by which another one was found.</summary>
        private ulong ComeBack(ulong linear)
        {
            if (_known.Count == 0 || _entries.Count == 0 || _random.Next(2) == 0)
                return linear;
            ulong entry = _entries[_random.Next(_entries.Count)].At;
            int table = _known.FindIndex(page => page.Frame == entry >> Page.Shift);
            return table >= 0 ? _known[table].Linear | (entry & Page.OffsetMask) + (ulong)_random.Next(2)
                : _known[_random.Next(_known.Count)].Linear | (linear & Page.OffsetMask);
        }

        private void Compare(string what, ulong? address, uint error, Pfn? frame, uint? fault, FaultOutcome outcome,
            byte? value)
        {
            Seen.Compared++;
            Assert.That(fault, Is.EqualTo(address == null ? error : (uint?)null), what);
            if (address is not { } found)
            {
                Seen.Errors.Add(error);
                return;
            }
            bool isSmall = found < (ulong)Frames * Page.Size;
            if (!isSmall && !(_large && found >> Page.Shift is >= LargeFrame and < LargeFrame + LargePages))
            {
                Assert.That(outcome, Is.EqualTo(FaultOutcome.Mmio), what);
                return;
            }
            if (value != null && isSmall && found >= WritableFrames * Page.Size)
            {
                Assert.That(outcome, Is.EqualTo(FaultOutcome.ReadOnlyWrite), what);
                return;
            }
            Seen.Mapped++;
            Hva hva = _memory.Vm.Memory.Slots.Find(new Gpa(found)).ToHva(new Gpa(found));
            Assert.That(frame?.Value, Is.EqualTo(_memory.Process.Present(hva.Value, out _)?.Number.Value), what);
            if (value is { } stored)
            {
                if (isSmall)
                    _image[found] = stored;
                int by = _entries.FindIndex(entry => entry.At >> 3 == found >> 3);
                _affected = by >= 0 ? _entries[by].Linear : null;
                // Any page may be a table; those in large pages have zeros only.
                _isStale |= isSmall;
            }
            Assert.That(GuestWalkerTests.Load(_memory).AsSpan().SequenceEqual(_image), $"{what}: guest memory");
        }

        /// <summary>A byte that may make of an entry another one that leads somewhere.</summary>
        private byte RandomByte(ulong linear) => (linear & 7) switch
        {
            0 => (byte)(_random.Next(256) | (_random.Next(8) != 0 ? 7 : 0)),
            1 => (byte)(_random.Next(Frames) << 4),
            _ => 0,
        };

        /// <summary>No translation is of a page that the process has not behind some frame, or allows more.</summary>
        private void CheckInvariants()
        {
            Dictionary<ulong, bool> pages = [];
            for (ulong page = 0; page < (_large ? LargeFrame + LargePages : Frames); page++)
            {
                page = page == Frames ? LargeFrame : page;
                MemorySlot slot = _memory.Vm.Memory.Slots.Find(new Gfn(page).Address);
                if (_memory.Process.Present(slot.ToHva(new Gfn(page).Address).Value, out bool writable) is { } frame)
                {
                    ulong number = frame.Number.Value;
                    pages[number] = (writable && !slot.IsReadOnly) | pages.GetValueOrDefault(number);
                }
            }
            foreach ((ulong linear, ShadowProcessor.Found found) in _processor.Tlb)
            {
                Assert.That(pages, Does.ContainKey(found.Frame.Value), $"{linear:x}000");
                Assert.That(pages[found.Frame.Value] || !found.Writable, $"{linear:x}000 is writable");
            }
        }

        private ulong Pick(ulong bit) => _random.Next(2) == 0 ? bit : 0;
    }
}
