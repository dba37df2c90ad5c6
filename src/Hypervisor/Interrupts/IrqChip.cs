// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Host;
using SharpKvm.Vm;

namespace SharpKvm.Interrupts;

/// <summary>Which interrupt controllers are in the kernel.</summary>
internal enum IrqchipMode : byte
{
    /// <summary>None: user space delivers by KVM_INTERRUPT.</summary>
    None,
    /// <summary>Local APICs only; IOAPIC, PIC and PIT are in user space (KVM_CAP_SPLIT_IRQCHIP).</summary>
    Split,
    /// <summary>All (KVM_CREATE_IRQCHIP).</summary>
    Kernel,
}

/// <summary>The interrupt controllers that the vCPUs of a VM share.</summary>
internal struct IrqChip
{
    /// <summary>Set before the first vCPU exists, never changed afterwards.</summary>
    public IrqchipMode Mode;
    /// <summary>KVM_X2APIC_API_USE_32BIT_IDS: MSIs and KVM_GET/SET_LAPIC carry APIC ids of 32 bits.</summary>
    public bool Wide;
    /// <summary>
    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: to a CPU in x2APIC mode, destination 0xff of a chip or MSI is an id
    /// like any other, not all CPUs.
    /// </summary>
    public bool NoBroadcastQuirk;
    /// <summary>
    /// The id of the CPU that took the last message of lowest priority. A hint: senders race for it, and may.
    /// </summary>
    public uint LastArbitrated;
    /// <summary>Vectors whose end is told to <see cref="EndOfInterrupt"/> although they are edge-triggered.</summary>
    public VectorSet EoiVectors;

    /// <summary>The guest has handled an interrupt that a chip wants to know the end of.</summary>
    public static void EndOfInterrupt(ref Vcpu vcpu, Vector vector)
    {
    }
}
