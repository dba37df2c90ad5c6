// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>
/// The page that stands where the local APICs are after a reset (APIC-access page of VMX; SDM vol. 3, 30.4): what a
/// guest does there it does to the running vCPU's own APIC. A CPU whose APIC is elsewhere would find memory, so the
/// page goes for good when the first one moves, or when a slot has memory there.
/// </summary>
internal struct ApicAccess
{
    public static Gpa Address => new(ApicBase.DefaultAddress);

    public Hpa Page;
    private bool _isOver;

    /// <summary>False: no memory.</summary>
    public bool TryCreate() => !(Page = Page.IsNull ? KernelPages.Allocate() : Page).IsNull;

    /// <summary>Maps the page if it is what the guest has missed.</summary>
    public static bool TryMap(ref Vcpu vcpu, Gpa address)
    {
        ref Vm.Vm vm = ref vcpu.Vm;
        ref VmMemory memory = ref vm.Memory;
        if (address.Frame.Value != Address.Frame.Value || memory.ApicAccess.Page.IsNull || memory.ApicAccess._isOver
            || !vcpu.SpareTables.TopUp(NestedTables.TablesPerMapping))
            return false;
        ulong leaf = Ept.Leaf(memory.ApicAccess.Page.Frame, 1) | NestedTables.Writable;
        vm.Host.LockMmuShared();
        bool done = !memory.ApicAccess._isOver && NestedTables.Map<Ept>(
            ref memory, ref vcpu.SpareTables, address.Frame, 1, leaf) == MapResult.Mapped;
        vm.Host.UnlockMmuShared();
        return done;
    }

    /// <summary>From here on accesses are faults like those of other devices.</summary>
    public static void End(ref Vm.Vm vm)
    {
        if (vm.Memory.ApicAccess._isOver)
            return;
        TablePool retired = default;
        vm.Host.LockMmu();
        vm.Memory.ApicAccess._isOver = true;
        if (NestedTables.Remove(ref vm.Memory, Address.Frame, Address.Frame + 1, ref retired))
            vm.Host.FlushTlbs();
        vm.Host.UnlockMmu();
        retired.Free();
    }
}
