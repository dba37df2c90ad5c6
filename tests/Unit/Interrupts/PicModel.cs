// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Tests.Interrupts;

/// <summary>The two 8259A of a PC as their datasheet tells it, one flag per thing.</summary>
internal sealed class PicModel
{
    private readonly Chip _master = new(hasSlave: true, [3, 4, 5, 6, 7]);
    private readonly Chip _slave = new(hasSlave: false, [1, 2, 3, 4, 6, 7]);

    public bool Output => _master.Next() != null;

    /// <summary>The inputs whose interrupts have ended.</summary>
    public uint TakeAcknowledged()
    {
        uint bits = 0;
        foreach (int input in _master.Ended)
            bits |= 1u << input;
        foreach (int input in _slave.Ended)
            bits |= 1u << (8 + input);
        _master.Ended.Clear();
        _slave.Ended.Clear();
        return bits;
    }

    public int SetLine(int irq, bool level)
    {
        bool asked = _slave.Next() != null;
        int status = irq < 8 ? _master.SetLine(irq, level) : _slave.SetLine(irq - 8, level);
        if (asked && _slave.Next() == null)
            _master.Requested[2] = false;
        Connect();
        return status;
    }

    public byte Acknowledge()
    {
        int? input = _master.Acknowledge();
        int vector = _master.Base + (input ?? 7);
        if (input == 2)
            vector = _slave.Base + (_slave.Acknowledge() ?? 7);
        Connect();
        return (byte)vector;
    }

    public byte Read(ushort port)
    {
        byte value = port switch
        {
            0x20 or 0x21 => _master.Read(port == 0x21),
            0xa0 or 0xa1 => ReadSlave(port == 0xa1),
            0x4d0 => Bits(_master.IsLevel),
            _ => Bits(_slave.IsLevel),
        };
        Connect();
        return value;
    }

    public void Write(ushort port, byte value)
    {
        switch (port)
        {
            case 0x20: _master.Command(value); break;
            case 0x21: _master.Data(value); break;
            case 0xa0: _slave.Command(value); break;
            case 0xa1: _slave.Data(value); break;
            case 0x4d0: _master.Triggers(value); break;
            case 0x4d1: _slave.Triggers(value); break;
        }
        Connect();
    }

    private byte ReadSlave(bool data)
    {
        if (_slave.Polled)
            _master.Requested[2] = false;
        return _slave.Read(data);
    }

    private void Connect()
    {
        if (_slave.Next() != null)
            _master.Requested[2] = true;
    }

    private static byte Bits(bool[] flags) => (byte)flags.Select((flag, i) => flag ? 1 << i : 0).Sum();

    private sealed class Chip(bool hasSlave, int[] selectable)
    {
        public readonly bool[] Requested = new bool[8];
        public readonly bool[] IsLevel = new bool[8];
        public readonly List<int> Ended = [];
        public int Base;
        public bool Polled;
        private readonly bool[] _high = new bool[8];
        private readonly bool[] _masked = new bool[8];
        private readonly bool[] _inService = new bool[8];
        private int _lowest = 7;
        private bool _specialMask, _specialNested, _autoEoi, _rotatesOnAutoEoi, _readsInService;
        private bool _wantsIcw4;
        private int _icw;

        private IEnumerable<int> FromHighest => Enumerable.Range(1, 8).Select(i => (_lowest + i) % 8);

        public int? Next()
        {
            foreach (int input in FromHighest)
            {
                bool blocks = _inService[input] && !(_specialMask && _masked[input]);
                bool again = _specialNested && hasSlave && input == 2;
                if (Requested[input] && !_masked[input] && (!blocks || again))
                    return input;
                if (blocks)
                    return null;
            }
            return null;
        }

        public int SetLine(int input, bool level)
        {
            bool rises = level && !_high[input];
            bool waited = Requested[input];
            _high[input] = level;
            if (IsLevel[input])
                Requested[input] = level;
            else if (rises)
                Requested[input] = true;
            if (_masked[input])
                return -1;
            bool asks = IsLevel[input] ? level : rises;
            return asks && waited ? 0 : 1;
        }

        public int? Acknowledge()
        {
            if (Next() is not { } input)
                return null;
            _inService[input] = true;
            if (!IsLevel[input])
                Requested[input] = false;
            if (_autoEoi)
            {
                End(input);
                if (_rotatesOnAutoEoi)
                    _lowest = input;
            }
            return input;
        }

        public byte Read(bool data)
        {
            if (Polled)
            {
                Polled = false;
                return Acknowledge() is { } input ? (byte)(0x80 + input) : (byte)0;
            }
            return Bits(data ? _masked : _readsInService ? _inService : Requested);
        }

        public void Triggers(byte value)
        {
            foreach (int input in selectable)
            {
                IsLevel[input] = (value >> input & 1) != 0;
                if (IsLevel[input])
                    Requested[input] = _high[input];
            }
        }

        public void Data(byte value)
        {
            switch (_icw)
            {
                case 2:
                    Base = value / 8 * 8;
                    _icw = 3;
                    break;
                case 3:
                    _icw = _wantsIcw4 ? 4 : 0;
                    break;
                case 4:
                    _autoEoi = (value & 2) != 0;
                    _specialNested = (value & 0x10) != 0;
                    _icw = 0;
                    break;
                default:
                    for (int i = 0; i < 8; i++)
                        _masked[i] = (value >> i & 1) != 0;
                    break;
            }
        }

        public void Command(byte value)
        {
            if ((value & 0x10) != 0)
                Initialize((value & 1) != 0);
            else if ((value & 0x08) != 0)
                SetModes(value);
            else
                OperateOn(value >> 5, value & 7);
        }

        private void Initialize(bool wantsIcw4)
        {
            for (int i = 0; i < 8; i++)
            {
                End(i);
                if (Requested[i] && !IsLevel[i])
                {
                    Requested[i] = false;
                    Ended.Add(i);
                }
                _masked[i] = false;
            }
            _lowest = 7;
            _specialMask = _specialNested = _autoEoi = _rotatesOnAutoEoi = _readsInService = Polled = false;
            _wantsIcw4 = wantsIcw4;
            _icw = 2;
        }

        private void SetModes(byte value)
        {
            if ((value & 4) != 0)
                Polled = true;
            if ((value & 3) >= 2)
                _readsInService = (value & 1) != 0;
            if ((value & 0x40) != 0)
                _specialMask = (value & 0x20) != 0;
        }

        private void OperateOn(int command, int input)
        {
            int? ends = command switch
            {
                0b001 or 0b101 => First(),
                0b011 or 0b111 => input,
                _ => null,
            };
            if (ends is { } ended)
                End(ended);
            if (command is 0b101 or 0b111 && ends is { } last)
                _lowest = last;
            if (command == 0b110)
                _lowest = input;
            if (command is 0b000 or 0b100)
                _rotatesOnAutoEoi = command == 0b100;
        }

        private int? First()
        {
            foreach (int input in FromHighest)
            {
                if (_inService[input] && !(_specialMask && _masked[input]))
                    return input;
            }
            return null;
        }

        private void End(int input)
        {
            if (_inService[input])
                Ended.Add(input);
            _inService[input] = false;
        }
    }
}
