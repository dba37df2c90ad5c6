// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>The I/O APIC (Intel 82093AA): turns its inputs into messages to local APICs.</summary>
internal struct IoApic
{
    public const int Pins = kvm_ioapic_state.KVM_IOAPIC_NUM_PINS;
    /// <summary>
    /// The real-time clock's. User space repeats ticks that were coalesced; a tick counts as that until all CPUs that
    /// got the one before have signalled its EOI.
    /// </summary>
    public const int RtcPin = 8;
    /// <summary>Bytes of the window that the registers occupy from <see cref="BaseAddress"/> on.</summary>
    public const uint WindowSize = 0x100;

    /// <summary>
    /// What the version register says. An 0x11 has no EOI register (offset 0x40): guests clear Remote IRR by making the
    /// pin edge-triggered for a moment.
    /// </summary>
    private const uint Version = 0x11;
    private const ulong DefaultBase = 0xfec0_0000;
    private const uint SelectOffset = 0x00, WindowOffset = 0x10;
    private const uint IdRegister = 0, VersionRegister = 1, ArbitrationRegister = 2, FirstEntry = 0x10;

    private const ulong Logical = 1 << 11, RemoteIrr = 1 << 14, LevelTriggered = 1 << 15, Masked = 1 << 16;
    /// <summary>All but Remote IRR and the delivery status, which here is never 'pending'.</summary>
    private const ulong Writable = 0xff00_0000_0001_afff;

    /// <summary>
    /// After so many EOIs in a row that found the line still high the next delivery waits: the guest must get on.
    /// </summary>
    private const int StormLimit = 10_000;

    /// <summary>As user space sees it, but <c>irr</c> has all lines' levels.</summary>
    private kvm_ioapic_state _state;
    /// <summary>For each pin the EOIs in a row that found its line still high.</summary>
    private ulong_24 _repeats;
    /// <summary>Edge-triggered pins that are high and whose interrupt was delivered.</summary>
    private uint _edgesDelivered;
    private int _rtcInService;

    /// <summary>Guest physical address of the registers.</summary>
    public readonly ulong BaseAddress => _state.base_address;

    /// <summary>
    /// Pins in an EOI storm: <see cref="DeliverDeferred"/> must be called after a while, 10 ms say, when not 0.
    /// </summary>
    public uint Deferred { get; private set; }

    /// <param name="offset">In the window; 0 is read where there is no register.</param>
    public readonly uint Read(uint offset)
    {
        int index = (int)(_state.ioregsel - FirstEntry);
        return (offset, _state.ioregsel) switch
        {
            (SelectOffset, _) => _state.ioregsel,
            (WindowOffset, IdRegister or ArbitrationRegister) => _state.id << 24,
            (WindowOffset, VersionRegister) => (Pins - 1) << 16 | Version,
            (WindowOffset, >= FirstEntry and < FirstEntry + 2 * Pins) =>
                (uint)(_state.redirtbl[index / 2] >> (index % 2 * 32)),
            _ => 0,
        };
    }

    public void Write<TSink>(uint offset, uint value, ref TSink sink) where TSink : struct, IInterruptSink
    {
        uint index = _state.ioregsel - FirstEntry;
        if (offset == SelectOffset)
            _state.ioregsel = value & 0xff;
        else if (offset == WindowOffset && index < 2 * Pins)
            WriteEntry((int)index / 2, high: index % 2 != 0, value, ref sink);
        else if (offset == WindowOffset && _state.ioregsel == IdRegister)
            _state.id = value >> 24 & 0xf;
    }

    /// <summary>Drives input <paramref name="pin"/>, 0 to 23.</summary>
    public LineStatus SetLine<TSink>(int pin, bool level, ref TSink sink) where TSink : struct, IInterruptSink
    {
        uint bit = 1u << pin, before = _state.irr;
        _state.irr = level ? before | bit : before & ~bit;
        if (!level || (before & bit) == 0)
            _edgesDelivered &= ~bit;
        if (!level)
            return LineStatus.Delivered;
        bool isEdge = !IsLevel(_state.redirtbl[pin]);
        bool unfinished = pin == RtcPin && _rtcInService > 0;
        return isEdge && ((before & bit) != 0 || unfinished) ? LineStatus.Coalesced : Deliver(pin, ref sink);
    }

    /// <summary>
    /// A local APIC has ended the interrupts of these pins. Delivers again what is level-triggered and still asks.
    /// </summary>
    /// <param name="pins">What <see cref="PinsOf"/> says of the interrupt's vector.</param>
    /// <param name="sink">Takes the messages.</param>
    public void EndOfInterrupt<TSink>(uint pins, ref TSink sink) where TSink : struct, IInterruptSink
    {
        if ((pins >> RtcPin & 1) != 0 && _rtcInService > 0)
            _rtcInService--;
        Repeat(pins, RemoteIrr, ref sink);
    }

    /// <summary>Ends the pause of pins in an EOI storm.</summary>
    public void DeliverDeferred<TSink>(ref TSink sink) where TSink : struct, IInterruptSink
    {
        uint pins = Deferred;
        Deferred = 0;
        Repeat(pins, ended: 0, ref sink);
    }

    /// <summary>
    /// The pins that an EOI of this vector is for. Lines that fall with the EOI (resampled irqfds) must do so before
    /// <see cref="EndOfInterrupt"/> looks at them.
    /// </summary>
    public readonly uint PinsOf(byte vector)
    {
        uint pins = 0;
        for (int pin = 0; pin < Pins; pin++)
            pins |= (byte)_state.redirtbl[pin] == vector ? 1u << pin : 0;
        return pins;
    }

    /// <summary>
    /// Adds the vectors whose EOI <see cref="EndOfInterrupt"/> must hear of: those of level-triggered pins, of the RTC,
    /// and of <paramref name="watchedPins"/> whatever their trigger. Changes with every write to the window, with
    /// <see cref="Set"/> and <see cref="Reset"/>.
    /// </summary>
    public readonly void CollectEoiVectors(ref VectorSet set, uint watchedPins)
    {
        watchedPins |= 1u << RtcPin;
        for (int pin = 0; pin < Pins; pin++)
        {
            ulong entry = _state.redirtbl[pin];
            // Masked while it is in service: the EOI is still to come.
            bool active = (entry & Masked) == 0 || (entry & RemoteIrr) != 0;
            if (active && (IsLevel(entry) || (watchedPins >> pin & 1) != 0))
                set.Add((byte)entry);
        }
    }

    /// <summary>Forgets who has yet to end an RTC interrupt, for instance because a CPU was reset.</summary>
    public void ForgetRtc() => _rtcInService = 0;

    public void Reset()
    {
        this = default;
        _state.base_address = DefaultBase;
        for (int pin = 0; pin < Pins; pin++)
            _state.redirtbl[pin] = Masked;
    }

    /// <summary>
    /// The state for user space, where <c>irr</c> has only what still asks: an edge was delivered when it came.
    /// </summary>
    public readonly kvm_ioapic_state Get() => _state with { irr = _state.irr & ~_edgesDelivered };

    /// <summary>Takes any state and delivers what its <c>irr</c> asks for.</summary>
    public void Set<TSink>(in kvm_ioapic_state state, ref TSink sink) where TSink : struct, IInterruptSink
    {
        Reset();
        _state.base_address = state.base_address;
        _state.ioregsel = state.ioregsel & 0xff;
        _state.id = state.id & 0xf;
        for (int pin = 0; pin < Pins; pin++)
        {
            ulong entry = state.redirtbl[pin] & (Writable | RemoteIrr);
            _state.redirtbl[pin] = IsLevel(entry) ? entry : entry & ~RemoteIrr;
            if ((state.irr >> pin & 1) != 0)
                SetLine(pin, true, ref sink);
        }
    }

    private void WriteEntry<TSink>(int pin, bool high, uint value, ref TSink sink) where TSink : struct, IInterruptSink
    {
        ref ulong entry = ref _state.redirtbl[pin];
        ulong before = entry;
        ulong changed = high ? (uint)before | (ulong)value << 32 : before & ~0xffff_fffful | value;
        entry = changed & Writable | (IsLevel(changed) ? before & RemoteIrr : 0);
        if (pin == RtcPin && ((before ^ entry) & ~Masked) != 0)
            ForgetRtc();
        // An edge is not kept for the time when the pin is unmasked.
        if (Asks(pin))
            Deliver(pin, ref sink);
    }

    /// <summary>Delivers once more from those pins that still ask, or defers it.</summary>
    /// <param name="pins">A bit each.</param>
    /// <param name="ended">What of their entries is over: Remote IRR or nothing.</param>
    /// <param name="sink">Takes the messages.</param>
    private void Repeat<TSink>(uint pins, ulong ended, ref TSink sink) where TSink : struct, IInterruptSink
    {
        for (; pins != 0; pins &= pins - 1)
        {
            int pin = BitOperations.TrailingZeroCount(pins);
            _state.redirtbl[pin] &= ~ended;
            bool asks = Asks(pin), pause = asks && _repeats[pin] == StormLimit;
            _repeats[pin] = asks && !pause ? _repeats[pin] + 1 : 0;
            if (pause)
                Deferred |= 1u << pin;
            else if (asks)
                Deliver(pin, ref sink);
        }
    }

    /// <summary>Whether the line of a level-triggered, unmasked pin is high.</summary>
    private readonly bool Asks(int pin)
    {
        ulong entry = _state.redirtbl[pin];
        return IsLevel(entry) && (entry & Masked) == 0 && (_state.irr >> pin & 1) != 0;
    }

    private LineStatus Deliver<TSink>(int pin, ref TSink sink) where TSink : struct, IInterruptSink
    {
        ref ulong entry = ref _state.redirtbl[pin];
        if ((entry & Masked) != 0)
            return LineStatus.Masked;
        if ((entry & RemoteIrr) != 0)
            return LineStatus.Coalesced;
        bool isLevel = IsLevel(entry);
        InterruptMessage message = new()
        {
            Destination = (uint)(entry >> 56), Logical = (entry & Logical) != 0, Mode = ModeOf(entry), Level = isLevel,
            Vector = new((byte)entry),
        };
        int reached = sink.Deliver(in message);
        if (isLevel && reached > 0)
            entry |= RemoteIrr;
        if (!isLevel)
            _edgesDelivered |= 1u << pin;
        if (pin == RtcPin && !isLevel)
            _rtcInService = reached;
        return reached > 0 ? LineStatus.Delivered : LineStatus.Coalesced;
    }

    private static DeliveryMode ModeOf(ulong entry) => (DeliveryMode)(entry >> 8 & 7);

    /// <summary>SMI, NMI, INIT and ExtINT are edges whatever the entry says: they have no EOI.</summary>
    private static bool IsLevel(ulong entry) =>
        (entry & LevelTriggered) != 0 && ModeOf(entry) <= DeliveryMode.LowestPriority;
}
