// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm;

/// <summary>
/// The vCPUs of a VM by id. One is added under the VM's lock and stays until the VM ends, so that anyone may look at
/// any time, in interrupt handlers too.
/// </summary>
internal struct VcpuTable
{
    /// <summary>KVM_CAP_MAX_VCPUS, KVM_CAP_MAX_VCPU_ID.</summary>
    public const int Size = 1024;

    [InlineArray(Size)] private struct ById { private nint _first; }

    private ById _vcpus;

    /// <summary>How many there are.</summary>
    public int Count;

    /// <summary>One more than the highest id.</summary>
    public int End;

    /// <summary>The vCPU with this id; null when there is none.</summary>
    public KernelRef<Vcpu> Find(uint id) =>
        id < Size ? new(Volatile.Read(ref _vcpus[(int)id])) : default;

    /// <summary>The vCPU with this id or the next higher one.</summary>
    public bool TryFindFrom(ref uint id, out KernelRef<Vcpu> vcpu)
    {
        for (vcpu = default; id < Volatile.Read(ref End); id++)
        {
            vcpu = Find(id);
            if (!vcpu.IsNull)
                return true;
        }
        return false;
    }

    /// <summary>Asks every vCPU for something, soon.</summary>
    public void RequestAll(VcpuRequests requests)
    {
        for (uint id = 0; TryFindFrom(ref id, out KernelRef<Vcpu> vcpu); id++)
            vcpu.Value.Shared.RequestNow(requests);
    }

    /// <summary>Shows a vCPU that is ready to others.</summary>
    public void Add(uint id, KernelRef<Vcpu> vcpu)
    {
        Volatile.Write(ref _vcpus[(int)id], vcpu.Address);
        Volatile.Write(ref End, Math.Max(End, (int)id + 1));
        Count++;
    }
}
