// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>What the meaning of the guest's page tables depends on. The vendor's room fills it in.</summary>
internal struct PagingState
{
    public ulong Cr0, Cr3, Cr4, Efer;
    public uint Pkru;
    public byte Cpl;
    /// <summary>Width of guest physical addresses: CPUID 0x80000008, EAX bits 0-7.</summary>
    public byte PhysicalBits;
    /// <summary>RFLAGS.AC: lifts SMAP for explicit accesses.</summary>
    public bool AlignmentCheck;
}

/// <summary>An access by linear address; a read if no flag says otherwise.</summary>
[Flags] internal enum PageAccess : uint
{
    Read = 0, Write = 1 << 1, Fetch = 1 << 4,
    /// <summary>To a descriptor table or the TSS: with supervisor rights whatever the CPL, SMAP in force.</summary>
    Implicit = 1 << 8,
}

/// <summary>Error code of #PF (SDM vol. 3, 4.7).</summary>
[Flags] internal enum PageFaultCode : uint
{
    None = 0, Present = 1 << 0, Write = 1 << 1, User = 1 << 2, Reserved = 1 << 3, Fetch = 1 << 4,
    ProtectionKey = 1 << 5,
}

/// <summary>The outcome of a translation: an address, or the #PF to raise (CR2 is the linear address).</summary>
internal readonly struct Translation(Gpa address, PageFaultCode fault, bool succeeded)
{
    public readonly Gpa Address = address;
    public readonly PageFaultCode Fault = fault;
    public readonly bool Succeeded = succeeded;
}
