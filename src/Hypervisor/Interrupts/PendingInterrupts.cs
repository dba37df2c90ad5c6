// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>
/// Interrupts that wait for a vCPU whose local APIC is in the kernel: the PIC's (or in split mode one that user space
/// gave in its place) before the APIC's own. On the vCPU's thread.
/// </summary>
internal static class PendingInterrupts
{
    [MethodImpl(AggressiveInlining)] public static bool Any(ref Vcpu vcpu) =>
        vcpu.HasApic && (vcpu.Apic.HighestPending() >= 0 || HasExternal(ref vcpu));

    /// <summary>Whether one by KVM_INTERRUPT would be taken, as far as its controllers go.</summary>
    [MethodImpl(AggressiveInlining)] public static bool AreTakenFromUser(ref Vcpu vcpu) =>
        vcpu.Vm.Irqchip.Mode == IrqchipMode.None
        || vcpu.Vm.Irqchip.Mode == IrqchipMode.Split && ApicBus.AcceptsPic(ref vcpu) && !vcpu.Events.HasExternal;

    /// <summary>The one to inject now; <see cref="Any"/> has just said that there is one.</summary>
    public static Vector Take(ref Vcpu vcpu)
    {
        if (HasExternal(ref vcpu))
        {
            if (vcpu.Vm.Irqchip.Mode == IrqchipMode.Kernel)
                return new Vector(IrqChip.AcknowledgePic(ref vcpu.Vm));
            vcpu.Events.HasExternal = false;
            return vcpu.Events.External;
        }
        byte vector = (byte)vcpu.Apic.HighestPending();
        vcpu.Apic.Accept(vector);
        return new Vector(vector);
    }

    [MethodImpl(AggressiveInlining)] private static bool HasExternal(ref Vcpu vcpu) => vcpu.Events.HasExternal
        || vcpu.Vm.Irqchip.Mode == IrqchipMode.Kernel && vcpu.Vm.Irqchip.Pic.Output && ApicBus.AcceptsPic(ref vcpu);
}
