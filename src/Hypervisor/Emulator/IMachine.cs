// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>How an access of the emulator to its machine ended, and with it the instruction.</summary>
internal enum Access : byte
{
    /// <summary>
    /// After an instruction registers and RIP are up to date. A REP instruction may have done part of its work and then
    /// still points at itself, as between two iterations on hardware; likewise a locked instruction that lost a race.
    /// </summary>
    Done,
    /// <summary>
    /// The guest gets the exception that the machine has put into the <see cref="Emulator.Fault"/> argument, or the
    /// emulator into <see cref="Emulation.Fault"/>; RIP still points at the instruction.
    /// </summary>
    Fault,
    /// <summary>
    /// User space must serve it first. The emulator stops, nothing of the guest's registers has changed; the caller
    /// runs the same instruction again once the answer is there.
    /// </summary>
    UserSpace,
    /// <summary>The process has no memory behind the address: the instruction is run again when it may have.</summary>
    Absent,
    /// <summary>
    /// The machine has no such service. The instruction is not done, nothing changed: KVM_INTERNAL_ERROR_EMULATION with
    /// the bytes that were fetched.
    /// </summary>
    Unsupported,
}

/// <summary>A change to how the guest's page tables are consulted for an access.</summary>
[Flags] internal enum Rights : byte
{
    /// <summary>A read with the guest's current privilege.</summary>
    None = 0,
    /// <summary>The first half of a read-modify-write: the page must be writable, a #PF says W=1.</summary>
    Write = 1,
    /// <summary>Implicit supervisor access (descriptor tables, TSS) whatever the CPL.</summary>
    System = 2,
}

/// <summary>An exception for the guest.</summary>
internal struct Fault
{
    public byte Vector;
    /// <summary>Of an event that is delivered; of a fault that is raised, its vector tells.</summary>
    public bool HasErrorCode;
    public uint ErrorCode;
    /// <summary>The linear address of a #PF, for CR2.</summary>
    public ulong Address;

    public const byte DivideError = 0, InvalidOpcode = 6, NoDevice = 7, InvalidTss = 10, SegmentNotPresent = 11,
        StackSegment = 12, GeneralProtection = 13, PageFault = 14, AlignmentCheck = 17;
}

/// <summary>
/// What the emulator needs of a virtual CPU and its memory. Implemented by a struct that is a view (its state lies
/// behind references), so that all calls are direct.
/// <para>Replay: between two calls of <see cref="Retire"/> the emulator makes a deterministic sequence of accesses.
/// After <see cref="Access.UserSpace"/> the sequence starts again from the top; the machine answers those MMIO and port
/// accesses that user space has already served from its log (checking address, size and direction). RAM accesses are
/// simply made again.</para>
/// </summary>
internal interface IMachine
{
    ref GuestRegisters Registers { get; }
    int Cpl { get; set; }
    ulong Cr0 { get; }
    ulong Cr4 { get; }
    ulong Efer { get; }
    DescriptorTable Gdtr { get; set; }
    DescriptorTable Idtr { get; set; }
    Segment GetSegment(SegmentName name);
    void SetSegment(SegmentName name, in Segment segment);

    /// <summary>True when a REP instruction should stop at the next iteration (an event or a signal waits).</summary>
    bool MustYield { get; }

    /// <summary>The instruction, or one batch of a REP instruction, is complete: forget its replay log.</summary>
    void Retire();

    /// <summary>
    /// Where the emulator keeps the instruction that it works on until it is complete: bytes that another
    /// CPU changes meanwhile do not count.
    /// </summary>
    ref FetchedInstruction Fetched { get; }

    /// <summary>User space has answered for the instruction in <see cref="Fetched"/>: go on with it.</summary>
    bool Resumes { get; }

    /// <summary>
    /// Whether hardware has done this access of an instruction that makes no other: segmentation and paging allow it.
    /// </summary>
    bool IsChecked(Gva address, int size, bool write);

    /// <summary>Instruction bytes, checked for execution; at most 15, never across a page.</summary>
    Access Fetch(Gva address, scoped Span<byte> bytes, ref Fault fault);

    /// <summary>
    /// At most 32 bytes that may cross a page, or up to <see cref="PortData"/> bytes of RAM within a page that
    /// <see cref="Probe"/> has approved. Nothing may be written unless all of it can be.
    /// </summary>
    Access Read(Gva address, scoped Span<byte> data, Rights rights, ref Fault fault);
    Access Write(Gva address, scoped ReadOnlySpan<byte> data, Rights rights, ref Fault fault);

    /// <summary>Translates without an access. <paramref name="memory"/>: all is RAM (for a write: writable).</summary>
    Access Probe(Gva address, int length, Rights rights, out bool memory, ref Fault fault);

    /// <summary>
    /// Atomic on RAM when naturally aligned: 1, 2, 4, 8 or 16 bytes. On MMIO a plain write of
    /// <paramref name="replacement"/> with <paramref name="exchanged"/> true.
    /// </summary>
    Access CompareExchange(Gva address, scoped ReadOnlySpan<byte> expected, scoped ReadOnlySpan<byte> replacement,
        out bool exchanged, ref Fault fault);

    /// <summary>Where port data goes in and out: the run page's data area, at least 8 bytes, at most a page.</summary>
    Span<byte> PortData { get; }
    /// <summary><paramref name="count"/> times <paramref name="size"/> (1, 2, 4) bytes, sent from the start of
    /// <see cref="PortData"/>, or to be found there after <see cref="Access.Done"/>.</summary>
    Access Port(bool write, ushort port, int size, int count);

    /// <summary>Control word of the x87, its status word in the upper half; after an FNINIT, if so.</summary>
    uint FpuWords(bool initialize);
    /// <summary>The 16 bytes of an XMM register, until the guest runs.</summary>
    Span<ulong> Vector(int register);

    /// <summary>Control registers 0, 2, 3, 4, 8; CPL is checked already. False: #GP(0).</summary>
    ulong ReadControl(int index);
    bool TryWriteControl(int index, ulong value);
    /// <summary>Debug registers 0 to 7.</summary>
    DebugAccess TryReadDebug(int index, out ulong value);
    DebugAccess TryWriteDebug(int index, ulong value);

    /// <summary>
    /// RDMSR and WRMSR, of which false is #GP(0), CPUID in its registers, RDTSC, INVLPG at a CPL that allows them.
    /// </summary>
    bool TryReadMsr(uint index, out ulong value);
    bool TryWriteMsr(uint index, ulong value);
    void Cpuid();
    /// <summary>True.</summary>
    bool Hypercall();
    ulong Tsc { get; }
    void InvalidatePage(Gva address);
}
