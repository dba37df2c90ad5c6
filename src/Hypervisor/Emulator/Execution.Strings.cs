// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>String instructions and port I/O.</summary>
internal ref partial struct Execution<TMachine>
{
    /// <summary>Iterations of a REP instruction in one call: bounds the time before the caller looks around.</summary>
    private const int MaxIterations = 256;

    private ulong Offset(Gpr register) => Registers[register] & AddressMask;

    private void Advance(Gpr register, int bytes) => SetFull(register, _i.AddressSize,
        (Registers.Rflags & Rflags.Df) != 0 ? Registers[register] - (uint)bytes : Registers[register] + (uint)bytes);

    private bool Repeat(Op operation)
    {
        if (operation is Op.Ins or Op.Outs && !PortPermitted((ushort)Registers[Gpr.Rdx], _i.OperandSize))
            return false;
        bool compares = operation is Op.Cmps or Op.Scas;
        for (int iteration = 1; ; iteration++)
        {
            ulong left = Registers[Gpr.Rcx] & AddressMask;
            if (_i.Repeat != 0 && left == 0)
                return true;
            ulong limit = _i.Repeat != 0 ? left : 1;
            int count = operation >= Op.Ins ? PortString(operation == Op.Ins, limit) : StringElement(operation) ? 1 : 0;
            if (count == 0)
                return false;
            if (_i.Repeat == 0)
                return true;
            left -= (uint)count;
            SetFull(Gpr.Rcx, _i.AddressSize, left);
            bool zero = (Registers.Rflags & Rflags.Zf) != 0;
            if (left == 0 || compares && zero != (_i.Repeat == 0xf3))
                return true;
            _machine.Retire();
            bool step = (Registers.Rflags & Rflags.Tf) != 0;
            if (step || iteration >= MaxIterations || _machine.MustYield)
            {
                Result.SingleStep = step;
                return false;
            }
        }
    }

    /// <summary>MOVS, CMPS, STOS, LODS, SCAS: one element.</summary>
    private bool StringElement(Op operation)
    {
        int size = _i.OperandSize;
        bool reads = operation is Op.Movs or Op.Cmps or Op.Lods, stores = operation is Op.Movs or Op.Stos;
        bool destination = operation != Op.Lods;
        ulong linear = 0;
        // The destination's faults come before a read that may have an effect on a device.
        if (destination && (!Linear(SegmentName.Es, Offset(Gpr.Rdi), size, stores, out linear)
            || operation == Op.Movs && !Check(_machine.Probe(new Gva(linear), size, Rights.Write, out _,
                ref Result.Fault))))
            return false;
        ulong value = GetRegister((int)Gpr.Rax, size);
        if (reads && !ReadMemory(_i.Segment, Offset(Gpr.Rsi), size, out value))
            return false;
        ulong other = 0;
        if (destination
            && !(stores ? WriteLinear(linear, size, value) : ReadLinear(linear, size, Rights.None, out other)))
            return false;
        if (operation == Op.Lods)
            SetFull(Gpr.Rax, size, value);
        else if (!stores)
            Alu.Subtract(value, other, false, size, ref Registers.Rflags);
        if (reads)
            Advance(Gpr.Rsi, size);
        if (destination)
            Advance(Gpr.Rdi, size);
        return true;
    }

    /// <summary>
    /// How many elements at <paramref name="offset"/> can go in one batch: all in RAM, in one page, within the segment
    /// and the port buffer, upwards. At least 1; 0 when the first element faults.
    /// </summary>
    private int Batch(SegmentName segment, ulong offset, bool write, ulong limit, out ulong linear)
    {
        int size = _i.OperandSize;
        if (!Linear(segment, offset, size, write, out linear))
            return 0;
        Rights rights = write ? Rights.Write : Rights.None;
        int room = Math.Min(Page.Size - (int)new Gva(linear).Offset, _machine.PortData.Length) / size;
        int count = (int)Math.Min(limit, (uint)Math.Max(room, 1));
        bool whole = count > 1 && (Registers.Rflags & Rflags.Df) == 0
            && offset + (uint)(count * size) - 1 <= AddressMask
            && Translate(segment, offset, count * size, write, out _) == 0;
        count = whole ? count : 1;
        if (!Check(_machine.Probe(new Gva(linear), count * size, rights, out bool memory, ref Result.Fault)))
            return 0;
        return memory ? count : 1;
    }

    /// <summary>A batch of INS or OUTS: how many elements, 0 when it did not get through.</summary>
    private int PortString(bool input, ulong limit)
    {
        int size = _i.OperandSize;
        ushort port = (ushort)Registers[Gpr.Rdx];
        int count = input ? Batch(SegmentName.Es, Offset(Gpr.Rdi), true, limit, out ulong linear)
            : Batch(_i.Segment, Offset(Gpr.Rsi), false, limit, out linear);
        Gva address = new(linear);
        Span<byte> data = _machine.PortData[..(count * size)];
        bool done = count != 0 && (input
            ? Check(_machine.Port(write: false, port, size, count))
                && Check(_machine.Write(address, data, Rights.None, ref Result.Fault))
            : Check(_machine.Read(address, data, Rights.None, ref Result.Fault))
                && Check(_machine.Port(write: true, port, size, count)));
        if (!done)
            return 0;
        Advance(input ? Gpr.Rdi : Gpr.Rsi, count * size);
        return count;
    }

    private bool Port(Op operation)
    {
        int size = _i.OperandSize;
        bool immediate = (_i.Row & Op.ImmediateMask) != 0;
        ushort port = (ushort)(immediate ? _i.Immediate & 0xff : Registers[Gpr.Rdx]);
        if (!PortPermitted(port, size))
            return false;
        ulong value = Registers[Gpr.Rax];
        Span<byte> bytes = MemoryMarshal.AsBytes(new Span<ulong>(ref value))[..size];
        if (operation == Op.Out)
        {
            bytes.CopyTo(_machine.PortData);
            return Check(_machine.Port(write: true, port, size, 1));
        }
        if (!Check(_machine.Port(write: false, port, size, 1)))
            return false;
        _machine.PortData[..size].CopyTo(bytes);
        return SetFull(Gpr.Rax, size, value);
    }

    /// <summary>IOPL, then the I/O permission bitmap in the TSS (SDM vol. 1, 19.5.2).</summary>
    private bool PortPermitted(ushort port, int size)
    {
        int iopl = (int)(Registers.Rflags >> 12 & 3);
        if (!_protected || !_virtual8086 && _machine.Cpl <= iopl)
            return true;
        const int bitmapOffset = 0x66;
        Segment tss = _machine.GetSegment(SegmentName.Tr);
        // Available or busy 32-bit (or 64-bit) TSS: types 9 and 11.
        uint place = (uint)port >> 3;
        return Permit(tss.Present && (tss.Type & ~2) == 9 && tss.Limit > bitmapOffset)
            && ReadLinear(tss.Base + bitmapOffset, 2, Rights.System, out ulong bitmap)
            && Permit(bitmap + place < tss.Limit)
            && ReadLinear(tss.Base + bitmap + place, 2, Rights.System, out ulong bits)
            && Permit((bits >> (port & 7) & ((1UL << size) - 1)) == 0);
    }
}
