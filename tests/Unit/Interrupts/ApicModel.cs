// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Interrupts;

namespace SharpKvm.Tests.Interrupts;

/// <summary>Local APICs and their bus, as plainly as can be: a flag for each vector, a look at everyone.</summary>
internal sealed class ApicModel
{
    private readonly SortedDictionary<uint, Cpu> _cpus = [];
    private uint _lastArbitrated;

    public ApicModel(params ReadOnlySpan<uint> ids)
    {
        foreach (uint id in ids)
            _cpus.Add(id, new Cpu(id));
    }

    public bool NoBroadcastQuirk { get; set; }
    public Cpu this[uint id] => _cpus[id];
    public List<uint> Kicks { get; } = [];

    /// <summary>One CPU.</summary>
    internal sealed class Cpu(uint id)
    {
        public uint Id { get; } = id;
        public ApicMode Mode { get; set; } = ApicMode.Xapic;
        public bool[] Irr { get; private set; } = new bool[256];
        public bool[] Isr { get; private set; } = new bool[256];
        public bool[] Tmr { get; private set; } = new bool[256];
        public byte Tpr { get; set; }
        public bool Enabled { get; private set; } = true;
        public byte LogicalId { get; set; }
        public byte Format { get; set; } = 0xf;
        public uint Errors { get; set; }
        public uint ErrorStatus { get; private set; }
        public byte ErrorVector { get; set; }
        public bool ErrorMasked { get; set; } = true;
        public VcpuRequests Requests { get; set; }

        public byte Ppr
        {
            get
            {
                int service = Highest(Isr);
                return service / 16 > Tpr / 16 ? (byte)(service / 16 * 16) : Tpr;
            }
        }

        public uint Ldr => Mode == ApicMode.X2apic ? Id / 16 * 65536 + (1u << (int)(Id % 16)) : (uint)LogicalId << 24;

        public int Pending
        {
            get
            {
                int vector = Highest(Irr);
                return Mode != ApicMode.Disabled && vector / 16 > Ppr / 16 ? vector : -1;
            }
        }

        public void Reset()
        {
            (Irr, Isr, Tmr) = (new bool[256], new bool[256], new bool[256]);
            (Tpr, LogicalId, Format, Errors, ErrorStatus, ErrorVector) = (0, 0, 0xf, 0, 0, 0);
            (Enabled, ErrorMasked) = (false, true);
        }

        public void SetEnabled(bool enabled)
        {
            Enabled = enabled;
            ErrorMasked |= !enabled;
        }

        public int Take()
        {
            int vector = Pending;
            if (vector >= 0)
                (Irr[vector], Isr[vector]) = (false, true);
            return vector;
        }

        public void End()
        {
            int vector = Highest(Isr);
            if (vector >= 0)
                Isr[vector] = false;
        }

        public void ReadErrors() => (ErrorStatus, Errors) = (Errors, 0);

        private static int Highest(bool[] vectors) => Array.LastIndexOf(vectors, true);
    }

    /// <summary>Returns how many CPUs took it.</summary>
    public int Send(InterruptMessage message, uint? sender)
    {
        Cpu[] targets = [.. _cpus.Values.Where(cpu => IsFor(cpu, message, sender))];
        if (message.Mode != DeliveryMode.LowestPriority)
            return targets.Count(cpu => Deliver(cpu, message, sender));
        Cpu[] candidates = [.. targets.Where(cpu => cpu.Enabled)];
        if (candidates.Length == 0)
            return 0;
        Cpu chosen = candidates.FirstOrDefault(cpu => cpu.Id > _lastArbitrated) ?? candidates[0];
        _lastArbitrated = chosen.Id;
        return Deliver(chosen, message, sender) ? 1 : 0;
    }

    /// <summary>A CPU's own message, which must have a vector above the exceptions.</summary>
    public void SendIpi(uint sender, InterruptMessage message)
    {
        if (message.Mode is DeliveryMode.Fixed or DeliveryMode.LowestPriority && message.Vector.Value < 16)
            Raise(_cpus[sender], 0x20, sender);
        else if (message.Mode is not (DeliveryMode.RemoteRead or DeliveryMode.ExtInt))
            Send(message, sender);
    }

    private bool IsFor(Cpu cpu, InterruptMessage message, uint? sender)
    {
        if (cpu.Mode == ApicMode.Disabled)
            return false;
        switch (message.Shorthand)
        {
            case Shorthand.Self: return cpu.Id == sender;
            case Shorthand.All: return true;
            case Shorthand.Others: return cpu.Id != sender;
        }
        bool isX2 = cpu.Mode == ApicMode.X2apic;
        if (message.Wide && message.Destination == 0xffffffff)
            return true;
        if (!message.Wide && message.Destination == 0xff && (!isX2 || !NoBroadcastQuirk))
            return true;
        if (!message.Logical)
            return cpu.Id == message.Destination;
        if (isX2)
            return cpu.Ldr / 65536 == message.Destination / 65536 && (cpu.Ldr & message.Destination & 0xffff) != 0;
        if (message.Wide)
            return false;
        return cpu.Format switch
        {
            15 => (cpu.LogicalId & message.Destination) != 0,
            0 => cpu.LogicalId / 16 == message.Destination / 16 && (cpu.LogicalId % 16 & message.Destination) != 0,
            _ => false,
        };
    }

    private bool Deliver(Cpu cpu, InterruptMessage message, uint? sender)
    {
        byte vector = message.Vector.Value;
        VcpuRequests request = VcpuRequests.Event;
        switch (message.Mode)
        {
            case DeliveryMode.Fixed or DeliveryMode.LowestPriority:
                if (!cpu.Enabled)
                    return false;
                if (vector < 16)
                {
                    Raise(cpu, 0x40, sender);
                    return false;
                }
                cpu.Tmr[vector] = message.Level;
                if (cpu.Irr[vector])
                    return true;
                cpu.Irr[vector] = true;
                break;
            case DeliveryMode.Nmi:
                request = VcpuRequests.Nmi;
                break;
            case DeliveryMode.Init:
                cpu.Requests &= ~VcpuRequests.StartUp;
                request = VcpuRequests.Init;
                break;
            case DeliveryMode.StartUp:
                request = VcpuRequests.StartUp;
                break;
            case DeliveryMode.Smi or DeliveryMode.RemoteRead:
                return false;
        }
        cpu.Requests |= request;
        if (cpu.Id != sender)
            Kicks.Add(cpu.Id);
        return true;
    }

    private void Raise(Cpu cpu, uint error, uint? sender)
    {
        bool isFirst = cpu.Errors == 0;
        cpu.Errors |= error;
        if (isFirst && !cpu.ErrorMasked)
            Deliver(cpu, new() { Vector = new(cpu.ErrorVector) }, sender);
    }
}
