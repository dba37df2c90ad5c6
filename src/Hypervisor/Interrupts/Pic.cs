// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>
/// A PC's two interrupt controllers, the slave at input 2 of the master, with the registers that make their inputs
/// level-triggered (ELCR).
/// </summary>
internal struct Pic
{
    /// <summary>Input of the master that the slave's output drives.</summary>
    public const int CascadeInput = 2;
    private const ushort ElcrPorts = 0x4d0;

    private Pic8259 _master, _slave;

    /// <summary>INTR: an interrupt waits for <see cref="Acknowledge"/>.</summary>
    public readonly bool Output => (_master.State.irr & ~_master.State.imr) != 0 && _master.NextRequest() >= 0;

    public static bool Owns(ushort port) => port is 0x20 or 0x21 or 0xa0 or 0xa1 or ElcrPorts or ElcrPorts + 1;

    /// <summary>Drives input <paramref name="irq"/>, 0 to 15.</summary>
    public LineStatus SetLine(int irq, bool level)
    {
        bool asked = _slave.NextRequest() >= 0;
        LineStatus status = Chip(irq >> 3).SetLine(irq & 7, level);
        // A level that falls takes its request along, so that no end leaves a spurious interrupt behind.
        if (asked && _slave.NextRequest() < 0)
            WithdrawCascade();
        Cascade();
        return status;
    }

    /// <summary>
    /// The INTA cycle: the vector of the interrupt that is now in service. When none waits any more, the vector of
    /// input 7 of the chip that was asked, which then is not in service.
    /// </summary>
    public byte Acknowledge()
    {
        int input = _master.Acknowledge();
        if (input != CascadeInput)
            return (byte)(_master.State.irq_base + (input & 7));
        input = _slave.Acknowledge();
        Cascade();
        return (byte)(_slave.State.irq_base + (input & 7));
    }

    /// <summary>IN from a port that <see cref="Owns"/> names.</summary>
    public byte Read(ushort port)
    {
        ref Pic8259 chip = ref Chip(ChipOf(port));
        if (port >= ElcrPorts)
            return chip.State.elcr;
        if (chip.State.poll == 0)
            return chip.Read(data: (port & 1) != 0);
        chip.State.poll = 0;
        int input = chip.Acknowledge();
        // A poll of the slave was its INTA: its output falls.
        if (port >= 0xa0)
            WithdrawCascade();
        Cascade();
        return (byte)(input >= 0 ? 0x80 | input : 0);
    }

    /// <summary>OUT to a port that <see cref="Owns"/> names.</summary>
    public void Write(ushort port, byte value)
    {
        ref Pic8259 chip = ref Chip(ChipOf(port));
        if (port >= ElcrPorts)
            chip.SetTriggers(value);
        else if ((port & 1) != 0)
            chip.WriteData(value);
        else
            chip.WriteCommand(value);
        Cascade();
    }

    /// <summary>
    /// The inputs, a bit each, whose interrupt has ceased to be in service since the last call: by an EOI, or because
    /// the chip was initialized, which forgets waiting ones too.
    /// </summary>
    public uint TakeAcknowledged()
    {
        uint inputs = (uint)(_slave.Ended << 8 | _master.Ended);
        _master.Ended = _slave.Ended = 0;
        return inputs;
    }

    public void Reset()
    {
        this = default;
        _master.State.elcr_mask = Pic8259.MasterTriggers;
        _slave.State.elcr_mask = Pic8259.SlaveTriggers;
    }

    /// <param name="chip">0: master, 1: slave.</param>
    public kvm_pic_state Get(int chip) => Chip(chip).State;

    /// <param name="chip">0: master, 1: slave.</param>
    /// <param name="state">Any bits.</param>
    public void Set(int chip, in kvm_pic_state state)
    {
        Chip(chip).Set(in state);
        Cascade();
    }

    [UnscopedRef] private ref Pic8259 Chip(int index) => ref (index & 1) == 0 ? ref _master : ref _slave;

    private static int ChipOf(ushort port) => port >= ElcrPorts ? port : port >> 7;

    /// <summary>The slave's output drives the master's input.</summary>
    private void Cascade()
    {
        if (_slave.NextRequest() >= 0)
            _master.State.irr |= 1 << CascadeInput;
    }

    private void WithdrawCascade() => _master.State.irr &= 0xff & ~(1 << CascadeInput);
}
