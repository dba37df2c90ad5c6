// SPDX-License-Identifier: GPL-2.0-only
using static SharpKvm.Abi.kvm_ioeventfd;

namespace SharpKvm.Vm;

/// <summary>A write of the guest that signals an eventfd instead of going to user space.</summary>
internal struct IoEventFd
{
    public ulong Address;
    public ulong DataMatch;
    public EventFd Event;
    /// <summary>Bytes; 0 stands for any.</summary>
    public byte Length;
    public bool IsPort;
    public bool AnyData;

    public readonly bool Matches(bool port, ulong address, uint length, ulong data) =>
        Address == address && IsPort == port && (Length == 0 || Length == length && (AnyData || DataMatch == data));

    /// <summary>Whether both stand for the same writes and signal the same eventfd.</summary>
    public readonly bool IsSame(in IoEventFd other) =>
        Address == other.Address && IsPort == other.IsPort && Length == other.Length && AnyData == other.AnyData
        && (AnyData || DataMatch == other.DataMatch) && Event.IsSame(other.Event);

    /// <summary>Whether some write would match both.</summary>
    public readonly bool Collides(in IoEventFd other) =>
        Address == other.Address && IsPort == other.IsPort && (Length == 0 || other.Length == 0
            || Length == other.Length && (AnyData || other.AnyData || DataMatch == other.DataMatch));
}

/// <summary>
/// The ioeventfds of a VM, in ascending order of their addresses. A table never changes once published: readers are in
/// an SRCU section of the shim, as with memory slots.
/// </summary>
internal struct IoEventFds
{
    /// <summary>As many as KVM has room for devices on a bus.</summary>
    private const int Limit = 1000;

    [InlineArray(Limit)] private struct Rows { private IoEventFd _first; }

    private struct Table
    {
        public int Count;
        public Rows Rows;
    }

    private Published<Table> _table;

    private Span<IoEventFd> Entries
    {
        get
        {
            KernelRef<Table> table = _table.Current;
            return table.IsNull ? default : ((Span<IoEventFd>)table.Value.Rows)[..table.Value.Count];
        }
    }

    /// <summary>There never was one.</summary>
    public bool IsEmpty => _table.Current.IsNull;

    /// <summary>Whether a write was one of them: then its event is signalled.</summary>
    public bool TrySignal(bool port, ulong address, uint length, ulong data)
    {
        Span<IoEventFd> entries = Entries;
        for (int i = FirstAt(entries, address); i < entries.Length && entries[i].Address == address; i++)
        {
            if (!entries[i].Matches(port, address, length, data))
                continue;
            entries[i].Event.Signal();
            return true;
        }
        return false;
    }

    private static int FirstAt(ReadOnlySpan<IoEventFd> entries, ulong address)
    {
        int low = 0;
        for (int above = entries.Length; low < above;)
        {
            int middle = (low + above) / 2;
            if (entries[middle].Address < address)
                low = middle + 1;
            else
                above = middle;
        }
        return low;
    }

    /// <summary>
    /// KVM_IOEVENTFD, under the VM's lock. EINVAL for flags, a length or a range that cannot be; EBADF or EINVAL for
    /// what is no eventfd; EEXIST, ENOENT, ENOSPC.
    /// </summary>
    public static int Change(ref Vm vm, in kvm_ioeventfd request)
    {
        const uint Known = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN;
        bool matchesData = (request.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) != 0;
        if ((request.flags & ~Known) != 0 || request.len is not (0 or 1 or 2 or 4 or 8)
            || request.addr + request.len < request.addr || request.len == 0 && matchesData)
            return Errno.EINVAL;
        int error = EventFd.TryOpen(request.fd, out EventFd @event);
        if (error != Errno.Ok)
            return error;
        IoEventFd entry = new()
        {
            Address = request.addr, Length = (byte)request.len, DataMatch = request.datamatch, AnyData = !matchesData,
            IsPort = (request.flags & KVM_IOEVENTFD_FLAG_PIO) != 0, Event = @event,
        };
        bool add = (request.flags & KVM_IOEVENTFD_FLAG_DEASSIGN) == 0;
        Span<IoEventFd> old = vm.IoEventFds.Entries;
        int place = FirstAt(old, entry.Address), met = place;
        while (met < old.Length && old[met].Address == entry.Address
            && !(add ? old[met].Collides(in entry) : old[met].IsSame(in entry)))
            met++;
        bool exists = met < old.Length && old[met].Address == entry.Address;
        error = add && old.Length == Limit ? Errno.ENOSPC
            : exists != add ? Errno.Ok : add ? Errno.EEXIST : Errno.ENOENT;
        KernelRef<Table> next = error == Errno.Ok ? KernelRef<Table>.Allocate() : default;
        if (error == Errno.Ok && next.IsNull)
            error = Errno.ENOMEM;
        if (error == Errno.Ok)
        {
            int at = add ? place : met, behind = at + 1;
            Span<IoEventFd> rows = next.Value.Rows;
            old[..at].CopyTo(rows);
            rows[at] = entry;
            old[(add ? at : behind)..].CopyTo(rows[(add ? behind : at)..]);
            next.Value.Count = add ? old.Length + 1 : old.Length - 1;
            vm.IoEventFds._table.Replace(vm.Host, next);
        }
        if (!add || error != Errno.Ok)
            @event.Close();
        // The reference that the table had.
        if (!add && error == Errno.Ok)
            @event.Close();
        return error;
    }

    /// <summary>Gives everything back; nobody runs the VM any more.</summary>
    public void Destroy()
    {
        foreach (ref IoEventFd entry in Entries)
            entry.Event.Close();
        _table.Free();
    }
}
