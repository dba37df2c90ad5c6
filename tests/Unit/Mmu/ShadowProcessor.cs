// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Mmu;
using SharpKvm.Vm;
using FaultOutcome = SharpKvm.Mmu.FaultOutcome;

namespace SharpKvm.Tests.Mmu;

/// <summary>
/// A vCPU on a processor without nested paging, whose accesses go as the run loop has them go: hardware walks the
/// shadow tables (SDM vol. 3, 4.4 and 4.5), remembers what it finds, and asks the fault handler until it is content.
/// </summary>
internal sealed class ShadowProcessor
{
    private readonly TestMemory _memory;
    private readonly Dictionary<ulong, Found> _tlb = [];
    private int _flushes;

    /// <summary>A translation as a TLB keeps it: rights of all levels together.</summary>
    public readonly record struct Found(Pfn Frame, bool Writable, bool User, bool NoExecute, int Key);

    public ShadowProcessor(TestMemory memory, int capacity)
    {
        _memory = memory;
        Assert.That(memory.Vm.Memory.Shadow.Create(capacity), Is.EqualTo(Errno.Ok));
        Assert.That(memory.Vcpu.Shadow.Create(), Is.EqualTo(Errno.Ok));
    }

    /// <summary>Registers of the guest. Who changes what its tables mean says <see cref="Flush"/>.</summary>
    public PagingState State;

    /// <summary>Writes that were emulated, and faults of any kind.</summary>
    public int Emulated { get; private set; }
    public int Faults { get; private set; }

    /// <summary>What the processor may use without a walk.</summary>
    public IReadOnlyDictionary<ulong, Found> Tlb
    {
        get
        {
            // A flush that the other side asks for is one of everything.
            if (_flushes != _memory.Machine.Flushes)
                _tlb.Clear();
            _flushes = _memory.Machine.Flushes;
            return _tlb;
        }
    }

    /// <summary>MOV to CR3, or a control register that flushes the TLB.</summary>
    public void Flush()
    {
        _memory.Vcpu.Shadow.IsStale = true;
        _tlb.Clear();
    }

    public void Invalidate(ulong linear)
    {
        ShadowTables.Invalidate(ref _memory.Vcpu, in State, new Gva(linear));
        _tlb.Remove(linear >> Page.Shift);
    }

    /// <summary>
    /// An access of the guest; a write stores <paramref name="value"/>. Where it went, if to memory, and the error code
    /// of the #PF that the guest got, if one.
    /// </summary>
    public (Pfn? Frame, uint? Error, FaultOutcome Outcome) Access(ulong linear, PageAccess access, byte? value = null)
    {
        for (int attempt = 0; attempt < 30; attempt++)
        {
            if (_memory.Vcpu.Shadow.MustLoad(in _memory.Vm.Memory.Shadow))
                Assert.That(ShadowVcpu.TryLoad(ref _memory.Vcpu, in State), Is.True);
            if (Look(linear, access, out PageFaultCode code) is { } found)
            {
                if (value is { } stored)
                    _memory.Process.FrameOf(found.Frame).Data[linear & Page.OffsetMask] = stored;
                return (found.Frame, null, FaultOutcome.Mapped);
            }
            _tlb.Remove(linear >> Page.Shift);
            Faults++;
            FaultOutcome outcome = ShadowFault.Handle(
                ref _memory.Vcpu, in State, new Gva(linear), code, out Translation guest);
            switch (outcome)
            {
                case FaultOutcome.GuestFault:
                    return (null, (uint)guest.Fault, FaultOutcome.Mapped);
                case FaultOutcome.NotYet:
                    FaultOutcome nested = NestedFault.Handle<Npt>(
                        ref _memory.Vcpu, guest.Address, access.HasFlag(PageAccess.Write), present: true, wait: true);
                    if (nested is not (FaultOutcome.Mapped or FaultOutcome.Retry))
                        return (null, null, nested);
                    break;
                case FaultOutcome.Emulate:
                    Emulated++;
                    byte written = value ?? 0;
                    if (value != null && GuestMemory.TryWrite(ref _memory.Vm, guest.Address, in written))
                        ShadowTables.Written(ref _memory.Vm, guest.Address, 1);
                    MemorySlot slot = _memory.Vm.Memory.Slots.Find(guest.Address);
                    return (_memory.Process.Present(slot.ToHva(guest.Address).Value, out _)!.Number, null,
                        FaultOutcome.Mapped);
                case FaultOutcome.NoMemory:
                    throw new AssertionException("no memory");
            }
        }
        throw new AssertionException("the guest makes no progress");
    }

    /// <summary>The TLB, or a walk. Null: #PF with <paramref name="code"/>.</summary>
    private Found? Look(ulong linear, PageAccess access, out PageFaultCode code)
    {
        bool isUser = State.Cpl == 3 && !access.HasFlag(PageAccess.Implicit);
        code = (PageFaultCode)(access & (PageAccess.Write | PageAccess.Fetch)) | (isUser ? PageFaultCode.User : 0);
        if (!Tlb.TryGetValue(linear >> Page.Shift, out Found found))
        {
            if (Walk(linear) is not { } walked)
                return null;
            _tlb[linear >> Page.Shift] = found = walked;
        }
        code |= PageFaultCode.Present;
        return Allows(in found, access, isUser) ? found : null;
    }

    /// <summary>What hardware finds in the tables; null: nothing.</summary>
    public Found? Walk(ulong linear)
    {
        bool isLong = (State.Efer & Efer.Lma) != 0;
        bool writable = true, user = true, noExecute = false;
        ulong table = _memory.Vcpu.Shadow.Root.Value;
        int shift = !isLong ? 30 : (State.Cr4 & Cr4.La57) != 0 ? 48 : 39;
        for (; ; shift -= 9)
        {
            int index = (int)(linear >> shift) & (isLong || shift != 30 ? 511 : 3);
            ulong entry = KernelPages.Entries(new Hpa(table))[index];
            if ((entry & 1) == 0)
                return null;
            bool isPointer = !isLong && shift == 30;
            ulong reserved = isPointer ? 0xfff0_0000_0000_01e6UL : isLong ? 0 : 0x7ff0_0000_0000_0000UL;
            bool isLarge = (entry & 0x80) != 0;
            ulong inside = isLarge ? 0x1f_f000UL : 0;
            Assert.That(entry & (reserved | inside), Is.Zero, "reserved bits of a shadow entry");
            Assert.That(!isLarge || shift == 21, "a large page of that size");
            table = entry & 0x000f_ffff_ffff_f000;
            if (isPointer)
                continue;
            writable &= (entry & 2) != 0;
            user &= (entry & 4) != 0;
            noExecute |= entry >> 63 != 0;
            if (shift == Page.Shift || isLarge)
            {
                Pfn frame = new((table | linear & inside) >> Page.Shift);
                return new Found(frame, writable, user, noExecute, (int)(entry >> 59) & 15);
            }
        }
    }

    /// <summary>With CR0.WP, whatever the guest's, and what else the guest has while it has paging.</summary>
    private bool Allows(in Found found, PageAccess access, bool isUser)
    {
        ulong checks = (State.Cr0 & Cr0.Pg) != 0 ? State.Cr4 : 0;
        bool isFetch = access.HasFlag(PageAccess.Fetch), isWrite = access.HasFlag(PageAccess.Write);
        bool explicitly = State.AlignmentCheck && !access.HasFlag(PageAccess.Implicit);
        if (isUser && !found.User)
            return false;
        if (isFetch)
            return !found.NoExecute && (isUser || !found.User || (checks & Cr4.Smep) == 0);
        if (!isUser && found.User && (checks & Cr4.Smap) != 0 && !explicitly)
            return false;
        if (found.User && (checks & Cr4.Pke) != 0 && (State.Efer & Efer.Lma) != 0)
        {
            uint disabled = State.Pkru >> (2 * found.Key) & 3;
            if ((disabled & 1) != 0 || (disabled != 0 && isWrite))
                return false;
        }
        return !isWrite || found.Writable;
    }
}
