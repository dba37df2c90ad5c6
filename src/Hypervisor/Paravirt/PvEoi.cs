// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Paravirt;

/// <summary>
/// Ends of interrupts without an exit: a bit in guest memory says that nothing waits for the end of the interrupt in
/// service, and the guest clears the bit in place of a write to EOI. The offer is made with an interrupt and holds
/// until the next exit, so that whoever looks at the local APIC sees its true state.
/// </summary>
internal static class PvEoi<TVendor> where TVendor : struct, IVendor
{
    private const byte Bit = 1;

    /// <summary>The guest is about to take an interrupt.</summary>
    public static void Offer(ref Vcpu vcpu)
    {
        if ((vcpu.Paravirt.Eoi & ParavirtState.Enabled) == 0 || !vcpu.HasApic)
            return;
        int vector = vcpu.Apic.HighestInService();
        if (vector >= 0 && !Apic<TVendor>.IsEndTold(ref vcpu, vector) && vcpu.Apic.HighestRequest() < 0)
            vcpu.Paravirt.EoiOffered = GuestMemory.TryWrite(ref vcpu.Vm, Place(ref vcpu), Bit);
    }

    /// <summary>After an exit, or an entry that did not come about: the offer ends. Was it taken?</summary>
    public static void TakeBack(ref Vcpu vcpu)
    {
        vcpu.Paravirt.EoiOffered = false;
        if (!GuestMemory.TryRead(ref vcpu.Vm, Place(ref vcpu), out byte bits))
            return;
        if ((bits & Bit) == 0)
            Apic<TVendor>.Eoi(ref vcpu);
        else
            GuestMemory.TryWrite(ref vcpu.Vm, Place(ref vcpu), (byte)(bits & ~Bit));
    }

    private static Gpa Place(ref Vcpu vcpu) => new(vcpu.Paravirt.Eoi & ~ParavirtState.Enabled);
}
