// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>
/// Messages to the CPUs of a VM. They come from vCPU threads, ioctls and interrupt handlers, the lock of the chips held
/// or not: nothing here takes a lock, allocates, sleeps or touches guest memory.
/// </summary>
internal static class ApicBus
{
    /// <summary>A message that comes from no CPU.</summary>
    public const uint NoSender = uint.MaxValue;
    private const uint LvtMasked = 1 << 16, ReceiveIllegalVector = 1 << 6;

    /// <summary>
    /// Sends a message. The sender is a vCPU's id and the calling thread that vCPU's own. Returns how many CPUs took
    /// it, those included that had the same interrupt waiting already (KVM counts them, too).
    /// </summary>
    public static int Send(ref Vm.Vm vm, in InterruptMessage message, uint sender = NoSender)
    {
        bool isBroadcast = IsBroadcast(in message);
        (uint first, uint count) = message.Shorthand switch
        {
            Shorthand.Self => (sender, 1u),
            Shorthand.None when !isBroadcast && !message.Logical => (message.Destination, 1u),
            Shorthand.None when !isBroadcast && message.Wide => (message.Destination >> 16 << 4, 16u),
            _ => (0u, uint.MaxValue),
        };
        // No CPU has an id so high that the sum could overflow and mean anything.
        uint end = Math.Min((uint)Volatile.Read(ref vm.Vcpus.End), first + count);

        int reached = 0;
        uint last = vm.Irqchip.LastArbitrated, chosen = NoSender;
        for (uint id = first; id < end; id++)
        {
            KernelRef<Vcpu> target = vm.Vcpus.Find(id);
            if (target.IsNull || !IsFor(ref target.Value, in message, sender))
                continue;
            if (message.Mode != DeliveryMode.LowestPriority)
                reached += Deliver(ref target.Value, in message, id == sender) ? 1 : 0;
            // The next one after the last; from the beginning when there is none.
            else if (target.Value.Apic.IsEnabled && (chosen == NoSender || chosen <= last && id > last))
                chosen = id;
        }
        if (chosen == NoSender)
            return reached;
        vm.Irqchip.LastArbitrated = chosen;
        return Deliver(ref vm.Vcpus.Find(chosen).Value, in message, chosen == sender) ? 1 : 0;
    }

    /// <summary>
    /// The message that a write of <paramref name="data"/> to <paramref name="address"/> is (SDM vol. 3, 11.11). False
    /// for VT-d's remappable format, and for reserved bits of the upper half, which holds bits 8-31 of the destination
    /// in <paramref name="wide"/> format (KVM_CAP_X2APIC_API) and counts for nothing otherwise.
    /// </summary>
    public static bool TryDecodeMsi(ulong address, uint data, bool wide, out InterruptMessage message)
    {
        const ulong Remappable = 1 << 4, RedirectionHint = 1 << 3, LogicalDestination = 1 << 2;
        uint upper = wide ? (uint)(address >> 32) : 0;
        uint destination = (byte)(address >> 12) | upper & ~0xffu;
        message = new()
        {
            Destination = destination, Wide = destination > 0xff, Logical = (address & LogicalDestination) != 0,
            Mode = (DeliveryMode)(data >> 8 & 7), Level = (data >> 15 & 1) != 0, Vector = new Vector((byte)data),
        };
        if ((address & RedirectionHint) != 0 && message.Mode == DeliveryMode.Fixed)
            message.Mode = DeliveryMode.LowestPriority;
        return (address & Remappable) == 0 && (byte)upper == 0;
    }

    /// <summary>
    /// An interrupt of the CPU's local vector table, if its entry is not masked. <paramref name="own"/>: the calling
    /// thread is the vCPU's own.
    /// </summary>
    public static void SendLocal(ref Vcpu vcpu, int register, bool own = false)
    {
        uint lvt = Volatile.Read(ref vcpu.Apic.Registers[register]);
        InterruptMessage message = new() { Mode = (DeliveryMode)(lvt >> 8 & 7), Vector = new Vector((byte)lvt) };
        if ((lvt & LvtMasked) == 0)
            Deliver(ref vcpu, in message, own);
    }

    /// <summary>Notes an error for ESR. The first since ESR was written interrupts (SDM vol. 3, 11.5.3).</summary>
    public static void RaiseError(ref Vcpu vcpu, uint error, bool own)
    {
        if (Interlocked.Or(ref vcpu.Apic.Errors, error) == 0)
            SendLocal(ref vcpu, ApicRegister.LvtError, own);
    }

    /// <summary>Whether the PIC's interrupts get to this CPU. May be called by others.</summary>
    public static bool AcceptsPic(ref Vcpu vcpu)
    {
        const uint Mode = 7 << 8, ExtInt = 7 << 8;
        if (vcpu.Apic.Mode == ApicMode.Disabled)
            return (vcpu.Msrs.ApicBase & ApicBase.Bsp) != 0;
        return (Volatile.Read(ref vcpu.Apic.Registers[ApicRegister.Lint0]) & (LvtMasked | Mode)) == ExtInt;
    }

    private static bool IsBroadcast(in InterruptMessage message) =>
        message.Destination == (message.Wide ? uint.MaxValue : 0xff);

    /// <summary>Whether the message is for this CPU (SDM vol. 3, 11.6.2 and 11.12.10). Ids are vCPU ids.</summary>
    public static bool IsFor(ref Vcpu vcpu, in InterruptMessage message, uint sender = NoSender)
    {
        ref Lapic apic = ref vcpu.Apic;
        uint id = vcpu.Id, destination = message.Destination;
        if (apic.Mode == ApicMode.Disabled)
            return false;
        if (message.Shorthand != Shorthand.None)
            return message.Shorthand != Shorthand.Others || id != sender;
        bool isX2 = apic.Mode == ApicMode.X2apic;
        if (IsBroadcast(in message) && !(isX2 && !message.Wide && vcpu.Vm.Irqchip.NoBroadcastQuirk))
            return true;
        if (!message.Logical)
            return id == destination;
        if (isX2)
            return destination >> 16 == id >> 4 && (destination >> (int)(id & 15) & 1) != 0;
        if (message.Wide)
            return false;
        uint own = Volatile.Read(ref apic.Registers[ApicRegister.Ldr]) >> 24;
        return (Volatile.Read(ref apic.Registers[ApicRegister.Dfr]) >> 28) switch
        {
            0xf => (own & destination) != 0,
            0 => own >> 4 == destination >> 4 && (own & destination & 0xf) != 0,
            _ => false,
        };
    }

    /// <summary>False: it is not taken.</summary>
    private static bool Deliver(ref Vcpu target, in InterruptMessage message, bool own)
    {
        VcpuRequests request = VcpuRequests.Event;
        bool post = false;
        switch (message.Mode)
        {
            case DeliveryMode.Fixed or DeliveryMode.LowestPriority:
                if (!target.Apic.IsEnabled)
                    return false;
                if (message.Vector.Value < Lapic.FirstVector)
                {
                    RaiseError(ref target, ReceiveIllegalVector, own);
                    return false;
                }
                // Its end is to exit from now on.
                bool level = target.Apic.IsVirtual && message.Level && !target.Apic.IsLevel(message.Vector.Value);
                if (level)
                    request |= VcpuRequests.Ends;
                // Who had it waiting was told by whoever sent it first.
                if (!target.Apic.TryRequest(message.Vector.Value, message.Level) && !level)
                    return true;
                post = target.Apic.IsPosted && !level;
                break;
            case DeliveryMode.Nmi: request = VcpuRequests.Nmi; break;
            case DeliveryMode.Init:
                // It forgets a start-up that came before it.
                Interlocked.And(ref target.Shared.RequestBits, ~(uint)VcpuRequests.StartUp);
                request = VcpuRequests.Init;
                break;
            case DeliveryMode.StartUp:
                Volatile.Write(ref target.Apic.StartUpVector, message.Vector.Value);
                request = VcpuRequests.StartUp;
                break;
            // The chip that sends it will say the vector when the CPU asks.
            case DeliveryMode.ExtInt: break;
            // No system-management mode; remote reads are history.
            default: return false;
        }
        if (own)
            target.Shared.Request(request);
        else
            target.Shared.RequestNow(request, post);
        return true;
    }
}
