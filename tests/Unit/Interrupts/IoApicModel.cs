// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Interrupts;

namespace SharpKvm.Tests.Interrupts;

/// <summary>The 82093AA as its datasheet tells it, with KVM's notion of a coalesced tick of the RTC.</summary>
internal sealed class IoApicModel
{
    private sealed class Pin
    {
        public bool High;
        public byte Vector;
        public byte Mode;
        public bool Logical, LowActive, RemoteIrr, LevelBit, Masked = true;
        /// <summary>An edge that was delivered and whose line is still high.</summary>
        public bool Delivered;
        public byte Destination;

        /// <summary>Only these two modes have an EOI.</summary>
        public bool IsLevel => LevelBit && Mode < 2;
        public bool Asks => IsLevel && High && !Masked && !RemoteIrr;
    }

    private readonly Pin[] _pins = [.. Enumerable.Range(0, 24).Select(_ => new Pin())];
    private int _select;
    private int _id;
    private int _rtcInService;

    public List<InterruptMessage> Messages { get; } = [];
    /// <summary>How many CPUs a message reaches.</summary>
    public int Reaches { get; set; }

    public uint Read(uint offset)
    {
        if (offset == 0)
            return (uint)_select;
        if (offset != 0x10)
            return 0;
        if (_select is 0 or 2)
            return (uint)_id << 24;
        if (_select == 1)
            return 0x170011;
        if (_select is < 0x10 or >= 0x40)
            return 0;
        Pin pin = _pins[(_select - 0x10) / 2];
        return _select % 2 == 1
            ? (uint)pin.Destination << 24
            : (uint)(pin.Vector + (pin.Mode << 8) + Bit(pin.Logical, 11) + Bit(pin.LowActive, 13)
                + Bit(pin.RemoteIrr, 14) + Bit(pin.LevelBit, 15) + Bit(pin.Masked, 16));

        static int Bit(bool value, int place) => value ? 1 << place : 0;
    }

    public void Write(uint offset, uint value)
    {
        if (offset == 0)
            _select = (int)(value & 0xff);
        else if (offset == 0x10 && _select == 0)
            _id = (int)(value >> 24) % 16;
        else if (offset == 0x10 && _select is >= 0x10 and < 0x40)
            WriteEntry((_select - 0x10) / 2, _select % 2 == 1, value);
    }

    public int SetLine(int number, bool level)
    {
        Pin pin = _pins[number];
        bool rises = level && !pin.High;
        pin.High = level;
        pin.Delivered &= level && !rises;
        if (!level)
            return 1;
        if (pin.IsLevel)
            return pin.Masked ? -1 : pin.RemoteIrr ? 0 : Send(number);
        if (!rises || number == 8 && _rtcInService > 0)
            return 0;
        return pin.Masked ? -1 : Send(number);
    }

    /// <returns>The pins, a bit each, whose interrupts have ended.</returns>
    public uint EndOfInterrupt(byte vector)
    {
        int[] ended = [.. Enumerable.Range(0, 24).Where(number => _pins[number].Vector == vector)];
        if (ended.Contains(8))
            _rtcInService = Math.Max(0, _rtcInService - 1);
        foreach (int number in ended)
        {
            _pins[number].RemoteIrr = false;
            if (_pins[number].Asks)
                Send(number);
        }
        return (uint)ended.Sum(number => 1 << number);
    }

    /// <summary>The vectors whose EOI matters.</summary>
    public IEnumerable<byte> EoiVectors(uint watched) =>
        from number in Enumerable.Range(0, 24)
        let pin = _pins[number]
        where (!pin.Masked || pin.RemoteIrr) && (pin.IsLevel || number == 8 || (watched >> number & 1) != 0)
        select pin.Vector;

    /// <summary>To user space and back: of the lines, edges that were delivered are forgotten.</summary>
    public void Migrate()
    {
        _rtcInService = 0;
        for (int number = 0; number < 24; number++)
        {
            bool wasHigh = _pins[number].High && !_pins[number].Delivered;
            _pins[number].High = false;
            _pins[number].Delivered = false;
            if (wasHigh)
                SetLine(number, true);
        }
    }

    private void WriteEntry(int number, bool high, uint value)
    {
        Pin pin = _pins[number];
        (byte, byte, bool, bool, bool, byte) before = Programmed();
        if (high)
        {
            pin.Destination = (byte)(value >> 24);
        }
        else
        {
            pin.Vector = (byte)value;
            pin.Mode = (byte)(value >> 8 & 7);
            pin.Logical = (value & 1 << 11) != 0;
            pin.LowActive = (value & 1 << 13) != 0;
            pin.LevelBit = (value & 1 << 15) != 0;
            pin.Masked = (value & 1 << 16) != 0;
            pin.RemoteIrr &= pin.IsLevel;
        }
        if (number == 8 && before != Programmed())
            _rtcInService = 0;
        if (pin.Asks)
            Send(number);

        (byte, byte, bool, bool, bool, byte) Programmed() =>
            (pin.Vector, pin.Mode, pin.Logical, pin.LowActive, pin.LevelBit, pin.Destination);
    }

    private int Send(int number)
    {
        Pin pin = _pins[number];
        Messages.Add(new InterruptMessage
        {
            Destination = pin.Destination, Logical = pin.Logical, Mode = (DeliveryMode)pin.Mode, Level = pin.IsLevel,
            Vector = new(pin.Vector),
        });
        if (pin.IsLevel)
            pin.RemoteIrr = Reaches > 0;
        else
            pin.Delivered = true;
        if (!pin.IsLevel && number == 8)
            _rtcInService = Reaches;
        return Math.Min(Reaches, 1);
    }
}
