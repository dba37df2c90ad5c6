// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Paravirt;

/// <summary>
/// Records in guest memory that others may read at any time: their version is odd while they change. Any address may
/// be the guest's idea of one; what is no memory is not written.
/// </summary>
internal static class VersionedRecord
{
    public static void Write<T>(ref Vm.Vm vm, Gpa version, Gpa place, in T value) where T : unmanaged
    {
        if (!GuestMemory.TryRead(ref vm, version, out uint old))
            return;
        uint changing = old + 1 | 1;
        if (!GuestMemory.TryWrite(ref vm, version, changing))
            return;
        GuestMemory.TryWrite(ref vm, place, value);
        GuestMemory.TryWrite(ref vm, version, changing + 1);
    }
}
