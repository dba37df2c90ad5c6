// SPDX-License-Identifier: GPL-2.0-only
using static SharpKvm.Abi.kvm_pit_state2;

namespace SharpKvm.Interrupts;

/// <summary>
/// A PC's timer (Intel 8254) and the port of its speaker. Channel 0 raises IRQ 0 when its output rises; channel 2
/// sounds the speaker, and its gate is the only one that can be closed. Times are nanoseconds of a clock that does not
/// go back.
/// </summary>
internal struct Pit
{
    private const long Frequency = 1_193_182, Second = 1_000_000_000;
    /// <summary>
    /// Ticks, 200 µs: IRQ 0 comes no more often, so that a guest cannot keep the host busy with its timer. A shorter
    /// period is lengthened to a multiple; what is read of the counter stays true.
    /// </summary>
    private const long ShortestPeriod = Frequency / 5000 + 1;
    /// <summary>
    /// IRQs that are owed to the guest at most. When as many have come without an answer, none is waited for any more.
    /// </summary>
    private const long MaxOwed = 4096;
    /// <summary>Ticks between changes of the bit that shows memory refresh: 15 µs.</summary>
    private const long RefreshTicks = 18;
    private const ushort FirstPort = 0x40, ControlPort = 0x43, SpeakerPort = 0x61;

    private InlineArray3<PitChannel> _channels;
    private uint _flags;
    /// <summary>Tick of the next IRQ 0, or <see cref="PitChannel.Never"/>.</summary>
    private long _due;
    private long _owed;
    /// <summary>IRQs that came due since the guest ended one, the one that it was given included.</summary>
    private long _unanswered;

    /// <summary>
    /// Whether IRQs that the guest was too slow for are repeated (KVM_REINJECT_CONTROL). Otherwise each comes when it
    /// is due, and may coalesce.
    /// </summary>
    public bool Reinject { get; set; }

    /// <summary>When <see cref="Expire"/> is to be called; 0: never.</summary>
    public readonly ulong Deadline => _due == PitChannel.Never ? 0 : (ulong)Math.Max(1, TimeOf(_due));

    /// <param name="port">Any port.</param>
    /// <param name="speaker">Whether the speaker's port is among them (KVM_PIT_SPEAKER_DUMMY).</param>
    public static bool Owns(ushort port, bool speaker) =>
        port is >= FirstPort and <= ControlPort || speaker && port == SpeakerPort;

    /// <summary>IN from a port that <see cref="Owns"/> names.</summary>
    public byte Read(ushort port, ulong now)
    {
        long tick = TickAt((long)now);
        int channel = port & 3;
        if (port != SpeakerPort)
            return channel < 3 ? _channels[channel].Read(tick) : (byte)0xff;
        return (byte)((_channels[2].Gate ? 1 : 0) | (int)(_flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON)
            | (int)(tick / RefreshTicks & 1) << 4 | (_channels[2].Output(tick) ? 0x20 : 0));
    }

    /// <summary>OUT to a port that <see cref="Owns"/> names. <see cref="Deadline"/> may change.</summary>
    public void Write(ushort port, byte value, ulong now)
    {
        long tick = TickAt((long)now);
        int channel = port & 3;
        if (port == SpeakerPort)
        {
            _channels[2].SetGate((value & 1) != 0, tick);
            _flags = _flags & KVM_PIT_FLAGS_HPET_LEGACY | value & KVM_PIT_FLAGS_SPEAKER_DATA_ON;
        }
        else if (channel == 3)
        {
            Control(value, tick);
        }
        else if (_channels[channel].Write(value, tick) && channel == 0)
        {
            Arm(tick);
        }
    }

    /// <summary>The deadline has passed.</summary>
    /// <returns>
    /// Whether to pulse IRQ 0. When that finds the line masked everywhere, <see cref="ForgetOwed"/> must be called.
    /// </returns>
    public bool Expire(ulong now)
    {
        long tick = TickAt((long)now), due = _due;
        if (tick < due)
            return false;
        ref PitChannel channel = ref _channels[0];
        _due = channel.NextRise(tick, ShortestPeriod);
        long missed = channel.IsPeriodic ? (_due - due) / channel.Period(ShortestPeriod) - 1 : 0;
        if (!Reinject || _unanswered >= MaxOwed)
            ForgetOwed();
        if (!Reinject)
            return true;
        _owed = Math.Min(MaxOwed, _owed + missed + Math.Min(_unanswered, 1));
        return _unanswered++ == 0;
    }

    /// <summary>The guest has ended IRQ 0.</summary>
    /// <returns>Whether to pulse it again: one is owed.</returns>
    public bool Acknowledge()
    {
        _unanswered = Math.Min(_owed, 1);
        _owed -= _unanswered;
        return _unanswered != 0;
    }

    /// <summary>The guest does not listen: no IRQ is owed or waited for.</summary>
    public void ForgetOwed() => _owed = _unanswered = 0;

    /// <summary>All channels without a count.</summary>
    public void Reset(ulong now)
    {
        kvm_pit_state2 state = default;
        for (int i = 0; i < 3; i++)
            state.channels[i].mode = 0xff;
        Set(in state, now);
        Reinject = true;
    }

    public readonly kvm_pit_state2 Get(ulong now)
    {
        kvm_pit_state2 state = new() { flags = _flags };
        for (int i = 0; i < 3; i++)
            state.channels[i] = _channels[i].Get(TickAt((long)now));
        return state;
    }

    /// <summary>
    /// Takes any state. A one-shot of channel 0 that has run out raises IRQ 0 at once: on its way the state may have
    /// lost it, and one too many does no harm.
    /// </summary>
    public void Set(in kvm_pit_state2 state, ulong now)
    {
        long tick = TickAt((long)now);
        _flags = state.flags & (KVM_PIT_FLAGS_HPET_LEGACY | KVM_PIT_FLAGS_SPEAKER_DATA_ON);
        for (int i = 0; i < 3; i++)
            _channels[i].Set(in state.channels[i], hasGate: i == 2, tick);
        Arm(_channels[0].IsPeriodic ? tick : long.MinValue);
    }

    /// <summary>The tick that a time lies in.</summary>
    public static long TickAt(long time) => time / Second * Frequency + time % Second * Frequency / Second;

    /// <summary>When a tick begins.</summary>
    public static long TimeOf(long tick) =>
        tick / Frequency * Second + (tick % Frequency * Second + Frequency - 1) / Frequency;

    /// <summary>A control word, or a command that keeps counts or status for reading.</summary>
    private void Control(byte value, long tick)
    {
        int channel = value >> 6;
        bool readBack = channel == 3;
        if (!readBack && (value & 0x30) != 0)
        {
            _channels[channel].Program(value);
            if (channel == 0)
                Arm(tick);
            return;
        }
        for (int i = 0; i < 3; i++)
        {
            if (readBack ? (value >> i & 2) != 0 : i == channel)
                _channels[i].Latch(count: (value & 0x20) == 0, status: readBack && (value & 0x10) == 0, tick);
        }
    }

    /// <summary>Channel 0 has changed: finds its next IRQ after <paramref name="tick"/>.</summary>
    private void Arm(long tick)
    {
        bool isOff = (_flags & KVM_PIT_FLAGS_HPET_LEGACY) != 0;
        _due = isOff ? PitChannel.Never : _channels[0].NextRise(tick, ShortestPeriod);
        ForgetOwed();
    }
}
