// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Vm;

namespace SharpKvm.Tests;

/// <summary>A guest's descriptor table with a task that runs and one that does not, both of flat segments.</summary>
internal static class TwoTasks
{
    public const ushort Running = 0x28, Other = 0x30;
    public const ulong Gdt = 0x3000, RunningTss = 0x4000, OtherTss = 0x5000, Entry = 0x6000, Stack = 0x6800;

    public static void Put<TVendor, TTurn, TBlock>(ScriptedGuest<TVendor, TTurn, TBlock> guest)
        where TVendor : struct, IVendor where TTurn : class
    {
        Write(Gdt + 8, 0x00cf9b000000ffff);
        Write(Gdt + 0x10, 0x00cf93000000ffff);
        Write(Gdt + Running, Descriptor(RunningTss, 0x8b));
        Write(Gdt + Other, Descriptor(OtherTss, 0x89));
        Write(OtherTss + 0x20, Entry | Rflags.Fixed << 32);
        Write(OtherTss + 0x38, Stack);
        Write(OtherTss + 0x48, 0x10 | 8ul << 32);
        Write(OtherTss + 0x50, 0x10 | 0x10ul << 32);
        TVendor.SetTable(ref guest.Vcpu, SegmentName.Gdtr, new() { Base = Gdt, Limit = 0x37 });
        TVendor.SetSegment(ref guest.Vcpu, SegmentName.Tr,
            new() { Selector = Running, Base = RunningTss, Limit = 0x67, Attributes = 0x8b });

        void Write(ulong address, ulong value) => guest.Write(address, BitConverter.GetBytes(value));
    }

    private static ulong Descriptor(ulong address, byte access) => 0x67 | address << 16 | (ulong)access << 40;
}
