// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;

namespace SharpKvm.Interrupts;

/// <summary>How a local APIC takes a message, as encoded in redirection entries, MSI data and the ICR.</summary>
internal enum DeliveryMode : byte
{
    Fixed, LowestPriority, Smi, RemoteRead, Nmi, Init, StartUp, ExtInt,
}

/// <summary>An interrupt message to local APICs (SDM vol. 3, 11.6 and 11.11).</summary>
internal struct InterruptMessage
{
    /// <summary>APIC ID, or a set of logical destinations.</summary>
    public uint Destination;
    public bool Logical;
    public DeliveryMode Mode;
    /// <summary>Level-triggered: its EOI is broadcast.</summary>
    public bool Level;
    public Vector Vector;
}

/// <summary>Takes interrupt messages to local APICs.</summary>
internal interface IInterruptSink
{
    /// <returns>How many CPUs it reached; 0: each had it waiting already, or there is none.</returns>
    int Deliver(in InterruptMessage message);
}
