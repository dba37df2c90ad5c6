// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>One Intel 8259A, always cascaded and in 8086 mode.</summary>
internal struct Pic8259
{
    private const int Icw1 = 0x10, Icw1Icw4 = 0x01;
    private const int Ocw2Rotate = 0x80, Ocw2Specific = 0x40, Ocw2Eoi = 0x20;
    private const int Ocw3 = 0x08, Ocw3Poll = 0x04, Ocw3ReadRegister = 0x02, Ocw3SetMask = 0x40;

    /// <summary>Inputs whose trigger can be changed: IRQ 0, 1, 2, 8 and 13 are always edge-triggered.</summary>
    public const byte MasterTriggers = 0xf8, SlaveTriggers = 0xde;

    /// <summary>The registers, as user space sees them.</summary>
    public kvm_pic_state State;
    /// <summary>Inputs whose interrupt ceased to be in service.</summary>
    public byte Ended;

    /// <summary>The input to serve next, or -1.</summary>
    public readonly int NextRequest()
    {
        int rank = Rank(State.irr & ~State.imr), inService = Rank(Blocking);
        // Special fully nested: the slave that is in service may interrupt again.
        bool nested = State.special_fully_nested_mode != 0 && State.elcr_mask == MasterTriggers
            && rank == inService && rank < 8 && Input(rank) == Pic.CascadeInput;
        return rank < inService || nested ? Input(rank) : -1;
    }

    /// <summary>In service, but for those that special mask mode makes as good as ended.</summary>
    private readonly int Blocking => State.special_mask != 0 ? State.isr & ~State.imr : State.isr;

    public LineStatus SetLine(int input, bool level)
    {
        byte bit = (byte)(1 << input);
        bool waits = (State.irr & bit) != 0;
        // An edge is kept until it is served, also when the line falls.
        bool changes = (State.elcr & bit) != 0 || level && (State.last_irr & bit) == 0;
        State.last_irr = With(State.last_irr, bit, level);
        if (changes)
            State.irr = With(State.irr, bit, level);
        if ((State.imr & bit) != 0)
            return LineStatus.Masked;
        return level && changes && waits ? LineStatus.Coalesced : LineStatus.Delivered;
    }

    /// <summary>INTA: puts what waits into service.</summary>
    /// <returns>Its input; -1 if none waits.</returns>
    public int Acknowledge()
    {
        int input = NextRequest();
        if (input < 0)
            return input;
        byte bit = (byte)(1 << input);
        State.isr |= bit;
        State.irr &= (byte)(~bit | State.elcr);
        if (State.auto_eoi != 0)
            End(input, rotate: State.rotate_on_auto_eoi != 0);
        return input;
    }

    /// <summary>IN: IMR, or else what OCW3 selected.</summary>
    public readonly byte Read(bool data) => data ? State.imr : State.read_reg_select != 0 ? State.isr : State.irr;

    /// <summary>OUT to the first port: ICW1, OCW2 or OCW3.</summary>
    public void WriteCommand(byte value)
    {
        if ((value & Icw1) != 0)
            Initialize(withIcw4: (value & Icw1Icw4) != 0);
        else if ((value & Ocw3) != 0)
            SetReadsAndMask(value);
        else
            EndOrRotate(value);
    }

    /// <summary>OUT to the second port: IMR, or the next of ICW2 to ICW4.</summary>
    public void WriteData(byte value)
    {
        if (State.init_state == 0)
        {
            State.imr = value;
            return;
        }
        if (State.init_state == 1)
            State.irq_base = (byte)(value & 0xf8);
        if (State.init_state == 3)
        {
            State.special_fully_nested_mode = (byte)(value >> 4 & 1);
            State.auto_eoi = (byte)(value >> 1 & 1);
        }
        State.init_state = (byte)(State.init_state + 1 & (State.init4 != 0 || State.init_state == 1 ? 3 : 0));
    }

    /// <summary>ELCR: which inputs are level-triggered. Those show their line from now on.</summary>
    public void SetTriggers(byte value)
    {
        State.elcr = (byte)(value & State.elcr_mask);
        State.irr = (byte)(State.irr & ~State.elcr | State.last_irr & State.elcr);
    }

    /// <param name="state">Any bits; which triggers can be changed is not its to say.</param>
    public void Set(in kvm_pic_state state)
    {
        State = state with { elcr_mask = State.elcr_mask };
        State.elcr &= State.elcr_mask;
        State.last_irr = (byte)(State.last_irr & ~State.elcr | State.irr & State.elcr);
        State.priority_add &= 7;
        State.irq_base &= 0xf8;
        State.init_state &= 3;
    }

    /// <summary>ICW1. Edges are forgotten and must come again; a level-triggered line keeps asking.</summary>
    private void Initialize(bool withIcw4)
    {
        Ended |= (byte)(State.isr | State.irr & ~State.elcr);
        State = new()
        {
            last_irr = State.last_irr, irr = (byte)(State.irr & State.elcr), irq_base = State.irq_base,
            elcr = State.elcr, elcr_mask = State.elcr_mask, init_state = 1, init4 = (byte)(withIcw4 ? 1 : 0),
        };
    }

    /// <summary>OCW3.</summary>
    private void SetReadsAndMask(byte command)
    {
        State.poll |= (byte)((command & Ocw3Poll) >> 2);
        if ((command & Ocw3ReadRegister) != 0)
            State.read_reg_select = (byte)(command & 1);
        if ((command & Ocw3SetMask) != 0)
            State.special_mask = (byte)(command >> 5 & 1);
    }

    /// <summary>OCW2.</summary>
    private void EndOrRotate(int command)
    {
        bool rotate = (command & Ocw2Rotate) != 0, specific = (command & Ocw2Specific) != 0;
        int rank = Rank(Blocking);
        if ((command & Ocw2Eoi) != 0 && (specific || rank < 8))
            End(specific ? command & 7 : Input(rank), rotate);
        else if ((command & Ocw2Eoi) == 0 && !specific)
            State.rotate_on_auto_eoi = (byte)(rotate ? 1 : 0);
        else if ((command & Ocw2Eoi) == 0 && rotate)
            State.priority_add = (byte)(command + 1 & 7);
    }

    /// <summary>The end of an interrupt, which rotation makes the last in priority.</summary>
    private void End(int input, bool rotate)
    {
        Ended |= (byte)(State.isr & 1 << input);
        State.isr = With(State.isr, 1 << input, false);
        if (rotate)
            State.priority_add = (byte)(input + 1 & 7);
    }

    /// <summary>Place in the order of priority of the first of some inputs, 0 to 7; 8 if there is none.</summary>
    private readonly int Rank(int inputs) =>
        BitOperations.TrailingZeroCount((inputs << 8 | inputs) >> State.priority_add & 0xff | 0x100);

    private readonly int Input(int rank) => rank + State.priority_add & 7;

    private static byte With(byte bits, int bit, bool set) => (byte)(set ? bits | bit : bits & ~bit);
}
