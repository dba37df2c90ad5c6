// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Vm;

namespace SharpKvm.Paravirt;

/// <summary>Requests about what the guest is told, and the hypercalls by which vCPUs reach each other.</summary>
internal static class Paravirtual<TVendor> where TVendor : struct, IVendor
{
    public const long KVM_EOPNOTSUPP = 95, KVM_EINVAL = 22;
    /// <summary>Bits 18 and 19 of ICR: in place of a destination.</summary>
    private const ulong IcrShorthand = 3 << 18;

    public static bool MayUse(ref Vcpu vcpu, ParavirtFeature feature)
    {
        if (!vcpu.Paravirt.FollowsCpuid)
            return true;
        vcpu.Cpuid.Query(HostCpuid.Paravirtual, 0, out CpuidLeaf features);
        return (features.Eax >> (int)feature & 1) != 0;
    }

    public static void HandleRequests(ref Vcpu vcpu, VcpuRequests requests)
    {
        if ((requests & VcpuRequests.Clock) != 0)
            PvClock<TVendor>.Update(ref vcpu);
        else if ((requests & VcpuRequests.Migrated) != 0)
            PvClock<TVendor>.Migrated(ref vcpu);
        if ((requests & VcpuRequests.Steal) != 0)
            StealTime<TVendor>.Update(ref vcpu);
        if ((requests & VcpuRequests.Page) != 0)
            AsyncFaults<TVendor>.TellReady(ref vcpu);
        if ((requests & VcpuRequests.Unhalt) == 0)
            return;
        // Remembered if it comes before the halt that it is to end.
        if (vcpu.MpState == MpState.Halted)
            vcpu.MpState = MpState.Runnable;
        else
            vcpu.Paravirt.Unhalted = true;
    }

    public static bool TakeUnhalt(ref Vcpu vcpu)
    {
        bool unhalted = vcpu.Paravirt.Unhalted;
        vcpu.Paravirt.Unhalted = false;
        return unhalted;
    }

    /// <summary>
    /// KVM_HC_KICK_CPU: ends a vCPU's halt. KVM_HC_SCHED_YIELD (<paramref name="yields"/>): lets a vCPU run that the
    /// caller waits for.
    /// </summary>
    public static long Help(ref Vm.Vm vm, ulong apicId, bool yields)
    {
        KernelRef<Vcpu> target = vm.Vcpus.Find((uint)apicId);
        if (!target.IsNull && yields)
            target.Value.Shared.Host.YieldTo();
        else if (!target.IsNull)
            target.Value.Shared.RequestNow(VcpuRequests.Unhalt);
        return 0;
    }

    /// <summary>
    /// KVM_HC_SEND_IPI: the message that ICR describes to each APIC id in a bitmap of twice <paramref name="width"/>
    /// bits from <paramref name="first"/>. Returns how many took it.
    /// </summary>
    public static long SendIpi(ref Vcpu vcpu, ulong low, ulong high, ulong first, ulong icr, int width)
    {
        if (!vcpu.HasApic)
            return -KVM_EOPNOTSUPP;
        if ((icr & IcrShorthand) != 0)
            return -KVM_EINVAL;
        InterruptMessage message = new()
        {
            Wide = true, Mode = (DeliveryMode)(icr >> 8 & 7), Vector = new Vector((byte)icr),
        };
        uint reached = 0, id = (uint)first;
        for (int bit = 0; bit < 2 * width && id < VcpuTable.Size; bit++, id++)
        {
            if (((bit < width ? low : high) >> bit % width & 1) == 0)
                continue;
            message.Destination = id;
            reached += (uint)ApicBus.Send(ref vcpu.Vm, in message, vcpu.Id);
        }
        return reached;
    }
}
