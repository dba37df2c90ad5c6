// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>
/// One counter of an Intel 8254. Times are ticks of its clock; OUT and the count follow from the time by arithmetic. A
/// new count always starts at once, where the chip would wait for the next clock, and in modes 1, 2, 3 and 5 finish the
/// cycle under way.
/// </summary>
internal struct PitChannel
{
    public const long Never = long.MaxValue;

    /// <summary>Values of rw_mode, read_state, write_state and count_latched.</summary>
    private const byte Low = 1, High = 2, Word = 3, WordHigh = 4;
    /// <summary>More ticks than any count has: an untriggered one-shot looks like one that has run out.</summary>
    private const long LongAgo = 0x1_0001;
    /// <summary>Load time that says that there is no count; no clock's offset brings it near zero.</summary>
    private const long NotLoaded = long.MinValue / 2;

    /// <summary>
    /// The registers, as user space sees them but for two: <c>count</c> is 0 if none was written since the control
    /// word; <c>count_load_time</c> is the tick when counting began, and while the gate suspends it, how many ticks
    /// have been counted.
    /// </summary>
    private kvm_pit_channel_state _state;

    public readonly bool Gate => _state.gate != 0;

    /// <summary>Modes 2 and 3.</summary>
    public readonly bool IsPeriodic => _state.mode is 2 or 3;

    /// <summary>Modes 1 and 5: the gate starts the count and does not suspend it.</summary>
    private readonly bool IsTriggered => _state.mode is 1 or 5;
    private readonly bool IsSuspended => !Gate && !IsTriggered;
    private readonly long Count => _state.count;
    private readonly uint Modulus => _state.bcd != 0 ? 10_000u : 0x1_0000;
    /// <summary>Mode 3: ticks for which OUT is high.</summary>
    private readonly long HighHalf => (Count + 1) / 2;

    /// <summary>Takes a control word. OUT goes to the mode's initial level, and there is no count.</summary>
    public void Program(byte control)
    {
        byte access = (byte)(control >> 4 & 3), mode = (byte)(control >> 1 & 7);
        _state = new()
        {
            gate = _state.gate, rw_mode = access, read_state = access, write_state = access,
            mode = mode > 5 ? (byte)(mode - 4) : mode, bcd = (byte)(control & 1),
        };
    }

    /// <summary>Takes a byte of the count.</summary>
    /// <returns>Whether that starts or stops counting.</returns>
    public bool Write(byte value, long tick)
    {
        if (_state.write_state == Word)
        {
            _state.write_latch = value;
            _state.write_state = WordHigh;
            if (_state.mode == 0)
                _state.count = 0;
            return _state.mode == 0;
        }
        uint count = _state.write_state == Low ? value : (uint)value << 8;
        if (_state.write_state == WordHigh)
        {
            count |= _state.write_latch;
            _state.write_state = Word;
        }
        count = _state.bcd != 0 ? FromBcd(count) : count;
        _state.count = count == 0 ? Modulus : count;
        Start(IsTriggered ? tick - LongAgo : tick);
        return true;
    }

    public byte Read(long tick)
    {
        if (_state.status_latched != 0)
        {
            _state.status_latched = 0;
            return _state.status;
        }
        bool latched = _state.count_latched != 0;
        int value = latched ? _state.latched_count : Value(tick);
        byte place = latched ? _state.count_latched : _state.read_state;
        if (latched)
            _state.count_latched = place == Word ? High : (byte)0;
        else if (place >= Word)
            _state.read_state = (byte)(Word + WordHigh - place);
        return (byte)(place is High or WordHigh ? value >> 8 : value);
    }

    /// <summary>Keeps count and status for reading; what is kept already stays.</summary>
    public void Latch(bool count, bool status, long tick)
    {
        if (count && _state.count_latched == 0)
        {
            _state.latched_count = (ushort)Value(tick);
            _state.count_latched = _state.rw_mode;
        }
        if (status && _state.status_latched == 0)
        {
            _state.status = (byte)((Output(tick) ? 0x80 : 0) | (Count == 0 ? 0x40 : 0) | _state.rw_mode << 4
                | _state.mode << 1 | _state.bcd);
            _state.status_latched = 1;
        }
    }

    public void SetGate(bool open, long tick)
    {
        if (open == Gate)
            return;
        _state.gate = (byte)(open ? 1 : 0);
        if (open && (IsTriggered || IsPeriodic))
            Start(tick);
        else if (!IsTriggered)
            // From a time to ticks counted, or back.
            _state.count_load_time = tick - _state.count_load_time;
    }

    public readonly bool Output(long tick)
    {
        if (Count == 0)
            return _state.mode != 0;
        long elapsed = Elapsed(tick);
        return _state.mode switch
        {
            0 or 1 => elapsed >= Count,
            2 => IsSuspended || elapsed % Count != Count - 1,
            3 => IsSuspended || elapsed % Count < HighHalf,
            _ => elapsed != Count,
        };
    }

    /// <summary>
    /// The first tick after <paramref name="after"/> when OUT rises, or <see cref="Never"/>, if the gate stays open.
    /// A period below <paramref name="shortest"/> is lengthened to a multiple.
    /// </summary>
    public readonly long NextRise(long after, long shortest)
    {
        // The chip does not allow a period of 1: OUT does not move.
        if (Count == 0 || IsTriggered || IsPeriodic && Count == 1)
            return Never;
        long rise = _state.count_load_time + Count + (_state.mode == 4 ? 1 : 0);
        if (!IsPeriodic)
            return rise > after ? rise : Never;
        long period = Period(shortest);
        return after - (after - _state.count_load_time) % period + period;
    }

    /// <summary>The smallest multiple of the count that is not below <paramref name="shortest"/>.</summary>
    public readonly long Period(long shortest) => (shortest + Count - 1) / Count * Count;

    public readonly kvm_pit_channel_state Get(long tick) => _state with
    {
        count_load_time = Count == 0 ? NotLoaded : Pit.TimeOf(tick - Elapsed(tick)),
        count = Count == 0 ? Modulus : _state.count,
    };

    /// <param name="state">Any bits. A load time in the future means now.</param>
    /// <param name="hasGate">Whether the gate can be closed.</param>
    /// <param name="tick">Now.</param>
    public void Set(in kvm_pit_channel_state state, bool hasGate, long tick)
    {
        bool isLoaded = state.count_load_time > NotLoaded / 2;
        bool isNone = state.count == 0 || state.count == ((state.bcd & 1) != 0 ? 10_000u : 0x1_0000);
        bool hasCount = state.mode <= 5 && (isLoaded || !isNone);
        long loaded = isLoaded ? Math.Min(Pit.TickAt(state.count_load_time), tick) : tick;
        _state = state;
        _state.mode = state.mode <= 5 ? state.mode : (byte)0;
        _state.bcd &= 1;
        _state.gate = (byte)(!hasGate || state.gate != 0 ? 1 : 0);
        _state.rw_mode = state.rw_mode is Low or High ? state.rw_mode : Word;
        _state.read_state = Place(state.read_state);
        _state.write_state = Place(state.write_state);
        _state.count_latched = state.count_latched <= Word ? state.count_latched : (byte)0;
        _state.count = !hasCount ? 0 : state.count == 0 ? Modulus : Math.Min(state.count, 0x1_0000);
        _state.count_load_time = IsSuspended ? tick - loaded : loaded;
    }

    /// <summary>The byte that comes next; one of the access mode where user space names none.</summary>
    private readonly byte Place(byte place) => place is >= Low and <= WordHigh ? place : _state.rw_mode;

    private void Start(long tick) => _state.count_load_time = IsSuspended ? 0 : tick;

    private readonly long Elapsed(long tick) => IsSuspended ? _state.count_load_time : tick - _state.count_load_time;

    /// <summary>The counting element, as it is read.</summary>
    private readonly int Value(long tick)
    {
        if (Count == 0)
            return 0;
        long elapsed = Elapsed(tick), phase = elapsed % Count;
        long value = _state.mode switch
        {
            2 => Count - phase,
            3 => (Count & ~1) - 2 * (phase < HighHalf ? phase : phase - HighHalf),
            _ => Count - elapsed,
        };
        value = (value % Modulus + Modulus) % Modulus;
        return _state.bcd != 0 ? ToBcd((int)value) : (int)value;
    }

    private static uint FromBcd(uint digits) =>
        (digits >> 12) * 1000 + (digits >> 8 & 15) * 100 + (digits >> 4 & 15) * 10 + (digits & 15);

    private static int ToBcd(int value) =>
        value / 1000 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10;
}
