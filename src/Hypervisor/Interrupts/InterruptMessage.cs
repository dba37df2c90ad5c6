// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>What a message does to the CPUs that it reaches (SDM vol. 3, 11.6.1).</summary>
internal enum DeliveryMode : byte
{
    Fixed, LowestPriority, Smi, RemoteRead, Nmi, Init, StartUp, ExtInt,
}

/// <summary>Destinations relative to the sender (SDM vol. 3, 11.6.1).</summary>
internal enum Shorthand : byte
{
    None, Self, All, Others,
}

/// <summary>A message on the APIC bus: from a CPU, from a chip's pin, or an MSI.</summary>
internal struct InterruptMessage
{
    public uint Destination;
    /// <summary>The destination is matched with logical ids rather than with the APIC id.</summary>
    public bool Logical;
    public DeliveryMode Mode;
    /// <summary>Level-triggered: its end is told to the IOAPICs.</summary>
    public bool Level;
    public Vector Vector;
    /// <summary>
    /// Not <see cref="Shorthand.None"/>: the destination counts for nothing. Only in messages of CPUs.
    /// </summary>
    public Shorthand Shorthand;
    /// <summary>The destination has 32 bits, x2APIC's format, rather than 8.</summary>
    public bool Wide;
}

/// <summary>Takes interrupt messages to local APICs.</summary>
internal interface IInterruptSink
{
    /// <returns>How many CPUs it reached; 0: each had it waiting already, or there is none.</returns>
    int Deliver(in InterruptMessage message);
}
