// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>The last exits of a vCPU, read through debugfs.</summary>
[InlineArray(Length)]
internal struct ExitTrace
{
    public const int Length = 256;
    private ExitRecord _first;

    /// <summary>Writes those of all vCPUs, oldest first, to a file of debugfs (struct seq_file).</summary>
    public static void Show(ref Vm vm, nint file)
    {
        for (uint id = 0; vm.Vcpus.TryFindFrom(ref id, out KernelRef<Vcpu> vcpu); id++)
        {
            for (uint i = 0; i < Length; i++)
            {
                ref ExitRecord record = ref vcpu.Value.Exits[(int)((vcpu.Value.ExitCount + i) % Length)];
                if (record.Tsc != 0)
                    Log.Line(file, "%u %llu %#x %#llx %#llx %#llx\n\0"u8, id, record.Tsc, record.Reason, record.Rip,
                        record.Info1, record.Info2);
            }
        }
    }
}

/// <summary>One exit: when, where, why (the vendor's exit code and its two qualifications).</summary>
internal struct ExitRecord
{
    public ulong Tsc, Rip, Info1, Info2;
    public uint Reason;
}
