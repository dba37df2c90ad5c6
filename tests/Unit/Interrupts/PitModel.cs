// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Tests.Interrupts;

/// <summary>
/// The 8254 of a PC, clock pulse by clock pulse, as its datasheet tells it. As in the core, a count that is written
/// starts at once. A null is a value that the datasheet does not give.
/// </summary>
internal sealed class PitModel(long now)
{
    private readonly Counter[] _counters = [new(), new(), new() { Gate = false }];
    private long _now = now;
    private bool _speaker;
    private int _rises;

    /// <summary>When IRQ 0 was due.</summary>
    public List<long> Irqs { get; } = [];

    public void Advance(long ticks)
    {
        for (; ticks > 0; ticks--)
        {
            _now++;
            bool before = _counters[0].Out;
            foreach (Counter counter in _counters)
                counter.Clock();
            if (before || !_counters[0].Out)
                continue;
            // IRQ 0 keeps a distance of 200 µs.
            int every = _counters[0].Mode is 2 or 3 ? (239 + _counters[0].Initial - 1) / _counters[0].Initial : 1;
            if (++_rises % every == 0)
                Irqs.Add(_now);
        }
    }

    public void Write(ushort port, byte value)
    {
        if (port == 0x61)
        {
            _counters[2].SetGate((value & 1) != 0);
            _speaker = (value & 2) != 0;
        }
        else if (port == 0x43)
        {
            Control(value);
        }
        else if (_counters[port - 0x40].Write(value) && port == 0x40)
        {
            _rises = 0;
        }
    }

    public int? Read(ushort port)
    {
        if (port == 0x43)
            return null;
        if (port != 0x61)
            return _counters[port - 0x40].Read();
        return (_counters[2].Gate ? 1 : 0) + (_speaker ? 2 : 0) + (_now / 18 % 2 != 0 ? 16 : 0)
            + (_counters[2].Out ? 32 : 0);
    }

    private void Control(byte value)
    {
        if (value >= 0xc0)
        {
            for (int i = 0; i < 3; i++)
            {
                if ((value & 2 << i) == 0)
                    continue;
                if ((value & 0x20) == 0)
                    _counters[i].LatchCount();
                if ((value & 0x10) == 0)
                    _counters[i].LatchStatus();
            }
        }
        else if ((value & 0x30) == 0)
        {
            _counters[value >> 6].LatchCount();
        }
        else
        {
            _counters[value >> 6].Program(value >> 4 & 3, value >> 1 & 7, (value & 1) != 0);
            _rises = value >> 6 == 0 ? 0 : _rises;
        }
    }

    private sealed class Counter
    {
        public bool Gate = true;
        public bool Out;
        public int Mode;
        /// <summary>The initial count, 0 for none.</summary>
        public int Initial;
        private int _access = 3;
        private bool _bcd;
        private int _element;
        private bool _triggered;
        /// <summary>Modes 4 and 5 strobe once.</summary>
        private bool _strobes;
        private bool _readsHigh, _writesHigh;
        private int _low;
        private int? _status;
        private readonly Queue<int?> _latched = [];

        private int Modulus => _bcd ? 10_000 : 65_536;

        /// <summary>In modes 1 and 5 nothing is in the counting element before the trigger.</summary>
        private bool IsDefined => Initial != 0 && (Mode is not (1 or 5) || _triggered);

        public void Program(int access, int mode, bool bcd)
        {
            _access = access;
            Mode = mode is 6 or 7 ? mode - 4 : mode;
            _bcd = bcd;
            Out = Mode != 0;
            Initial = 0;
            _readsHigh = _writesHigh = false;
            _latched.Clear();
            _status = null;
        }

        public bool Write(byte value)
        {
            if (_access == 3 && !_writesHigh)
            {
                _low = value;
                _writesHigh = true;
                if (Mode != 0)
                    return false;
                Initial = 0;
                Out = false;
                return true;
            }
            int digits = _access switch { 1 => value, 2 => value * 256, _ => value * 256 + _low };
            _writesHigh = false;
            int count = _bcd
                ? digits % 16 + digits / 16 % 16 * 10 + digits / 256 % 16 * 100 + digits / 4096 * 1000
                : digits;
            Initial = count == 0 ? Modulus : count;
            _triggered = false;
            Start();
            return true;
        }

        public void SetGate(bool open)
        {
            bool rises = open && !Gate;
            Gate = open;
            if (Initial == 0)
                return;
            _triggered |= rises;
            if (rises && Mode is 1 or 2 or 3 or 5)
                Start();
            else if (!open && Mode is 2 or 3)
                Out = true;
        }

        /// <summary>One pulse.</summary>
        public void Clock()
        {
            if (!IsDefined || !Gate && Mode is not (1 or 5))
                return;
            switch (Mode)
            {
                case 2:
                    _element = _element == 1 ? Initial : _element - 1;
                    Out = _element != 1;
                    break;
                case 3:
                    SquareWave();
                    break;
                default:
                    _element = _element == 0 ? Modulus - 1 : _element - 1;
                    if (Mode < 2 && _element == 0)
                        Out = true;
                    if (Mode > 3)
                    {
                        Out = !(_strobes && _element == 0);
                        _strobes &= _element != 0;
                    }
                    break;
            }
        }

        public void LatchCount()
        {
            if (_latched.Count > 0)
                return;
            int? value = Value();
            if (_access != 2)
                _latched.Enqueue(value % 256);
            if (_access != 1)
                _latched.Enqueue(value / 256);
        }

        public void LatchStatus() => _status ??=
            (Out ? 0x80 : 0) + (Initial == 0 ? 0x40 : 0) + _access * 16 + Mode * 2 + (_bcd ? 1 : 0);

        public int? Read()
        {
            if (_status is { } status)
            {
                _status = null;
                return status;
            }
            if (_latched.TryDequeue(out int? latched))
                return latched;
            bool high = _access == 2 || _access == 3 && _readsHigh;
            _readsHigh = _access == 3 && !_readsHigh;
            return high ? Value() / 256 : Value() % 256;
        }

        private void Start()
        {
            _strobes = true;
            _element = Mode == 3 ? Initial / 2 * 2 : Initial;
            Out = Mode switch
            {
                0 => false,
                1 => !_triggered,
                2 => Initial != 1 || !Gate,
                _ => true,
            };
        }

        /// <summary>Down in twos; an odd count makes the high half one pulse longer. 1 is not allowed.</summary>
        private void SquareWave()
        {
            if (Initial == 1)
                return;
            if (Out && Initial % 2 == 1 && _element > 0)
            {
                _element -= 2;
                return;
            }
            _element -= 2;
            if (_element > 0)
                return;
            Out = !Out;
            _element = Initial / 2 * 2;
        }

        private int? Value()
        {
            if (!IsDefined)
                return null;
            int value = _element % Modulus;
            return _bcd ? value / 1000 * 4096 + value / 100 % 10 * 256 + value / 10 % 10 * 16 + value % 10 : value;
        }
    }
}
