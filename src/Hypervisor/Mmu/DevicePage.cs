// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>
/// Shadow paging: the linear page that a vCPU found a device behind, where no entry of a table can say so; its next
/// accesses need no walk. It is forgotten as a TLB forgets, and when slots have changed.
/// </summary>
internal struct DevicePage
{
    private const ulong None = 0, Valid = 1;

    private ulong _page, _kind;
    private uint _generation;
    private Gfn _frame;

    /// <summary>A walk has ended at an address; it is remembered if there is no memory.</summary>
    /// <param name="memory">The VM's memory.</param>
    /// <param name="address">The linear address.</param>
    /// <param name="kind">Whatever else the walk's answer depends on, but for what a TLB forgets by.</param>
    /// <param name="found">What is there.</param>
    public void Note(ref VmMemory memory, Gva address, ulong kind, Gpa found)
    {
        uint generation = memory.Generation;
        if (!memory.Slots.Find(found).Contains(found))
            (_page, _kind, _generation, _frame) = (Tag(address), kind, generation, found.Frame);
    }

    public readonly bool TryFind(in VmMemory memory, Gva address, ulong kind, out Gpa found)
    {
        found = _frame.Address + address.Offset;
        return _page == Tag(address) && _kind == kind && _generation == memory.Generation;
    }

    public void Forget() => _page = None;

    private static ulong Tag(Gva address) => address.Value & ~Page.OffsetMask | Valid;
}
