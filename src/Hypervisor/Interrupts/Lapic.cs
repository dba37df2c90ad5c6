// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>
/// Numbers of the local APIC's registers (SDM vol. 3, tables 11-1 and 11-6): the offset in the page by 16, or the MSR
/// less 800H.
/// </summary>
internal static class ApicRegister
{
    public const int Id = 0x02, Version = 0x03, Tpr = 0x08, Ppr = 0x0a, Eoi = 0x0b, Ldr = 0x0d, Dfr = 0x0e, Svr = 0x0f,
        Isr = 0x10, Tmr = 0x18, Irr = 0x20, Esr = 0x28, Icr = 0x30, IcrHigh = 0x31, LvtTimer = 0x32, LvtThermal = 0x33,
        LvtPerformance = 0x34, Lint0 = 0x35, Lint1 = 0x36, LvtError = 0x37, InitialCount = 0x38, CurrentCount = 0x39,
        Divide = 0x3e, SelfIpi = 0x3f, Count = 0x40;

    /// <summary>Those that RDMSR knows, a bit each (SDM vol. 3, table 11-6).</summary>
    public const ulong ReadableMsrs = 0x43fd_01ff_ffff_a50c;
}

/// <summary>Bits EN and EXTD of IA32_APIC_BASE (SDM vol. 3, table 11-5).</summary>
internal enum ApicMode : byte
{
    Disabled, Invalid, Xapic, X2apic,
}

/// <summary>
/// The registers, 32 bits at every 16 bytes: what a virtual-APIC page of VMX begins with (SDM vol. 3, 30.1). Where the
/// CPU delivers interrupts by itself it writes to TPR, PPR, ISR and IRR while the guest runs.
/// </summary>
internal struct ApicPage
{
    [InlineArray(ApicRegister.Count * Stride)] internal struct Words { private uint _first; }

    /// <summary>From one register to the next, in words.</summary>
    private const int Stride = 4;
    /// <summary>Where <see cref="Posted"/> is in the page.</summary>
    public const int PostedOffset = ApicRegister.Count * Stride * sizeof(uint);

    private Words _words;
    public PostedInterrupts Posted;

    [UnscopedRef] public ref uint this[int register]
    {
        [MethodImpl(AggressiveInlining)] get => ref _words[register * Stride];
    }
}

/// <summary>
/// Requests that are not in IRR yet (posted-interrupt descriptor: SDM vol. 3, table 30-1; 64 bytes, aligned to them).
/// </summary>
internal struct PostedInterrupts
{
    public InlineArray4<ulong> Requests;
    /// <summary>1: there may be some, and who sent the first has told of it.</summary>
    public uint Outstanding;
}

/// <summary>
/// A local APIC's state (SDM vol. 3, chapter 11).
/// <para>
/// All of it belongs to the vCPU's own thread, in KVM_RUN or an ioctl. Others, in any context, may do two things: set a
/// request (<see cref="TryRequest"/>: bits of IRR and TMR, atomically), and read what tells whether a message is for
/// this CPU (<see cref="Mode"/>, LDR, DFR, SVR, the LVT), each in one access. Where the CPU delivers interrupts by
/// itself (<see cref="IsVirtual"/>), IRR is its own and the vCPU's thread's; others post.
/// </para>
/// <para>
/// No interrupt is lost. The sender sets the bit in IRR, then <see cref="Host.VcpuRequests.Event"/>, then kicks; each
/// step is a full barrier. The receiver takes its requests in an atomic exchange, then looks at IRR, and before it
/// sleeps or enters the guest it looks at its requests once more (docs/architecture.md). So either it finds the bit in
/// IRR, or it finds a request that was set behind its back and looks again, or the sender finds it asleep or in the
/// guest and kicks it. A sender that finds the bit set already leaves the rest to the one that set it.
/// </para>
/// </summary>
internal struct Lapic
{
    public const uint SoftwareEnable = 1 << 8;
    /// <summary>Vectors below are the CPU's exceptions (SDM vol. 3, 11.5.2).</summary>
    public const int FirstVector = 16;
    private const int Words = 8, All = 256;

    /// <summary>Holds an <see cref="ApicPage"/>.</summary>
    public Hpa Page;
    private KernelRef<ApicPage> _page;
    /// <summary>The CPU delivers what is in IRR by itself (virtual-interrupt delivery of VMX).</summary>
    public bool IsVirtual;
    /// <summary>It takes what is posted while the guest runs, too.</summary>
    public bool IsPosted;
    /// <summary>
    /// Then: the highest vector that has come to IRR since <see cref="TakeStatus"/>; 0: none. <see cref="All"/>:
    /// software has written IRR or ISR.
    /// </summary>
    private int _raised;
    /// <summary>0: software finds nothing to deliver in IRR. Saves each entry the search.</summary>
    private uint _mayHaveRequests;
    /// <summary>Errors since the last write to ESR. Others set bits, atomically.</summary>
    public uint Errors;
    public ApicMode Mode;
    /// <summary>Of the start-up message that <see cref="Host.VcpuRequests.StartUp"/> tells of.</summary>
    public byte StartUpVector;
    public LapicTimer Timer;

    /// <summary>The CPU has the MSRs that are its registers, too.</summary>
    public readonly bool HasVirtualMsrs => IsVirtual && Mode == ApicMode.X2apic;

    public readonly ref ApicPage Registers => ref _page.Value;

    /// <summary>0 or ENOMEM; <see cref="Free"/> in either case.</summary>
    public int Create()
    {
        Page = KernelPages.Allocate();
        _page = KernelPages.Reference<ApicPage>(Page);
        return Page.IsNull ? Errno.ENOMEM : Errno.Ok;
    }

    public readonly void Free() => KernelPages.Free(Page);

    /// <summary>Whether it takes interrupts. May be called by others.</summary>
    public bool IsEnabled =>
        Mode != ApicMode.Disabled && (Volatile.Read(ref Registers[ApicRegister.Svr]) & SoftwareEnable) != 0;

    public byte Tpr => (byte)Registers[ApicRegister.Tpr];

    /// <summary>
    /// Requests a vector. May be called by others. False: it was requested already, and they are one interrupt, or who
    /// posted others has yet to be heard.
    /// </summary>
    public bool TryRequest(byte vector, bool level)
    {
        int word = vector / 32;
        uint bit = Bit(vector);
        ref ApicPage page = ref Registers;
        // First, so that whoever finds the vector in IRR finds its trigger mode.
        ref uint levels = ref page[ApicRegister.Tmr + word];
        if ((Volatile.Read(ref levels) & bit) != 0 != level)
        {
            if (level)
                Interlocked.Or(ref levels, bit);
            else
                Interlocked.And(ref levels, ~bit);
        }
        if (IsVirtual)
        {
            AtomicBits.TryAdd(page.Posted.Requests, vector);
            return Interlocked.Exchange(ref page.Posted.Outstanding, 1) == 0;
        }
        bool isNew = (Interlocked.Or(ref page[ApicRegister.Irr + word], bit) & bit) == 0;
        Volatile.Write(ref _mayHaveRequests, 1);
        return isNew;
    }

    /// <summary>IRR and ISR were written as a whole.</summary>
    public void NoteRequests()
    {
        _raised = All;
        if (!IsVirtual)
            Volatile.Write(ref _mayHaveRequests, 1);
    }

    /// <summary>What was posted goes to IRR. Whether it is time for <see cref="TakeStatus"/>.</summary>
    public bool TakePosted()
    {
        ref ApicPage page = ref Registers;
        if (Volatile.Read(ref page.Posted.Outstanding) == 0)
            return _raised != 0;
        // Before the requests: who posts behind this will be looked for once more.
        Interlocked.Exchange(ref page.Posted.Outstanding, 0);
        for (int word = 0; word < VectorSet.Words; word++)
        {
            if (Volatile.Read(ref page.Posted.Requests[word]) == 0)
                continue;
            ulong bits = Interlocked.Exchange(ref page.Posted.Requests[word], 0);
            page[ApicRegister.Irr + 2 * word] |= (uint)bits;
            page[ApicRegister.Irr + 2 * word + 1] |= (uint)(bits >> 32);
            _raised = Math.Max(_raised, word * 64 + BitOperations.Log2(bits));
        }
        return true;
    }

    /// <summary>
    /// The guest interrupt status for the next entry (SDM vol. 3, 25.4.2): the highest vector in IRR and, in bits 8-15,
    /// in ISR. <paramref name="left"/>: as the CPU left it.
    /// </summary>
    public uint TakeStatus(uint left)
    {
        uint status = _raised == All
            ? (uint)(Math.Max(HighestInService(), 0) << 8 | Math.Max(Highest(ApicRegister.Irr, Words - 1), 0))
            : left & 0xff00 | Math.Max(left & 0xff, (uint)_raised);
        _raised = 0;
        return status;
    }

    /// <summary>The highest vector in IRR, whatever its priority; -1 when there is none.</summary>
    public int HighestRequest()
    {
        if (IsVirtual)
            TakePosted();
        else if (Volatile.Read(ref _mayHaveRequests) == 0)
            return -1;
        int vector = Highest(ApicRegister.Irr, Words - 1);
        if (vector >= 0 || IsVirtual)
            return vector;
        // A request that is set between the search and this finds the hint gone: search once more behind the barrier.
        Interlocked.Exchange(ref _mayHaveRequests, 0);
        vector = Highest(ApicRegister.Irr, Words - 1);
        if (vector >= 0)
            _mayHaveRequests = 1;
        return vector;
    }

    /// <summary>The highest vector in ISR; -1 when there is none.</summary>
    public int HighestInService() => Highest(ApicRegister.Isr, Words - 1);

    /// <summary>
    /// The vector that software is to deliver now, as far as priorities go; -1 when there is none.
    /// </summary>
    [MethodImpl(AggressiveInlining)]
    public int HighestPending() => Volatile.Read(ref _mayHaveRequests) == 0 ? -1 : SearchPending();

    /// <summary>Whether the CPU will deliver an interrupt by itself when it enters the guest.</summary>
    public bool WillDeliver => IsVirtual && SearchPending() >= 0;

    private int SearchPending()
    {
        int vector = HighestRequest();
        return vector >> 4 > (int)(Registers[ApicRegister.Ppr] >> 4) && Mode != ApicMode.Disabled ? vector : -1;
    }

    /// <summary>The CPU takes what <see cref="HighestPending"/> said: from IRR to ISR.</summary>
    public void Accept(byte vector)
    {
        Interlocked.And(ref Registers[ApicRegister.Irr + vector / 32], ~Bit(vector));
        Registers[ApicRegister.Isr + vector / 32] |= Bit(vector);
        Registers[ApicRegister.Ppr] = vector & 0xf0u;
    }

    /// <summary>Takes the highest vector out of ISR; -1 when there is none.</summary>
    public int EndHighest()
    {
        int vector = Highest(ApicRegister.Isr, Words - 1);
        if (vector < 0)
            return -1;
        Registers[ApicRegister.Isr + vector / 32] &= ~Bit(vector);
        _raised = All;
        SetPriority(Highest(ApicRegister.Isr, vector / 32));
        return vector;
    }

    public bool IsLevel(int vector) => (Registers[ApicRegister.Tmr + vector / 32] & Bit(vector)) != 0;

    /// <summary>64 of TMR's bits.</summary>
    public ulong Levels(int word) =>
        Registers[ApicRegister.Tmr + 2 * word] | (ulong)Registers[ApicRegister.Tmr + 2 * word + 1] << 32;

    /// <summary>Computes PPR from TPR and ISR.</summary>
    public void UpdatePriority() => SetPriority(Highest(ApicRegister.Isr, Words - 1));

    /// <summary>TPR, or the class in service if that is higher (SDM vol. 3, 11.8.3.1).</summary>
    private void SetPriority(int inService) =>
        Registers[ApicRegister.Ppr] = Math.Max(Tpr, (uint)Math.Max(inService, 0) & 0xf0);

    /// <summary>The highest vector of a set, from one of its words downwards.</summary>
    private int Highest(int set, int word)
    {
        ref ApicPage page = ref Registers;
        for (; word >= 0; word--)
        {
            uint bits = Volatile.Read(ref page[set + word]);
            if (bits != 0)
                return word * 32 + BitOperations.Log2(bits);
        }
        return -1;
    }

    private static uint Bit(int vector) => 1u << (vector & 31);
}
