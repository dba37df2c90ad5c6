// SPDX-License-Identifier: GPL-2.0-only
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
}
