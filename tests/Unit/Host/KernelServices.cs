// SPDX-License-Identifier: GPL-2.0-only
// In place of the classes of src/CoreLib/Kernel that call Linux: the same services of the simulated host.
using System.Text;
using System.Text.RegularExpressions;
using SharpKvm.Tests.Host;

namespace Kernel;

internal static class KernelHeap
{
    public static nint Allocate(nuint bytes) => SimulatedHost.Current.AllocateBlock(bytes);

    public static void Free(nint address)
    {
        if (address != 0)
            SimulatedHost.Current.FreeBlock(address);
    }
}

internal static unsafe class X86
{
    public static void Cpuid(uint leaf, uint subleaf, uint* registers)
    {
        SimulatedHost.Current.Cpu.Cpuid.TryGetValue((leaf, subleaf), out CpuidLeaf result);
        *(CpuidLeaf*)registers = result;
    }
}

internal static partial class UserMemory
{
    public static bool Read(Hva source, Span<byte> destination) =>
        SimulatedHost.Current.Process.Read(source.Value, destination);

    public static bool Write(Hva destination, ReadOnlySpan<byte> source) =>
        SimulatedHost.Current.Process.Write(destination.Value, source);

    public static bool ReadWords(Hva source, Span<byte> destination) => Read(source, destination);
    public static bool TryReadPresent(Hva source, Span<byte> destination) =>
        SimulatedHost.Current.Process.ReadPresent(source.Value, destination);

    public static bool TryReadUInt64(Hva source, out ulong value) => TryRead(source, out value);

    public static Exchange CompareExchange(Hva address, int size, ulong expected, ulong replacement) =>
        SimulatedHost.Current.Process.CompareExchange(address.Value, size, expected, replacement);

    public static bool IsUserRange(Hva start, ulong bytes) =>
        bytes <= SimulatedProcess.UserEnd && start.Value <= SimulatedProcess.UserEnd - bytes;
}

internal readonly struct EventFd(nint handle)
{
    private readonly nint _handle = handle;

    public bool IsSame(EventFd other) => _handle == other._handle;
    public static int TryOpen(int descriptor, out EventFd @event)
    {
        @event = new EventFd(descriptor);
        return SimulatedHost.Current.Events.TryOpen(descriptor);
    }

    public void Signal() => SimulatedHost.Current.Events.Signal((int)_handle);
    public void Close() => SimulatedHost.Current.Events.Close((int)_handle);
}

internal static class Log
{
    public static void Error(ReadOnlySpan<byte> text, ulong value) =>
        SimulatedHost.Current.Log.Add($"{Encoding.UTF8.GetString(text).TrimEnd('\0')} {value:x}");

    /// <summary>With printf's conversions replaced.</summary>
    public static void Values(ReadOnlySpan<byte> format, ulong a, ulong b, ulong c, ulong d, ulong e)
    {
        Queue<ulong> values = new([a, b, c, d, e]);
        SimulatedHost.Current.Log.Add(Regex.Replace(
            Encoding.UTF8.GetString(format).TrimEnd('\0', '\n'), "%ll[xd]", _ => $"{values.Dequeue():x}"));
    }

    public static void Line(nint file, ReadOnlySpan<byte> format, uint a, ulong b, uint c, ulong d, ulong e, ulong f) =>
        SimulatedHost.Current.Log.Add($"{file}: {a} {b} {c:x} {d:x} {e:x} {f:x}");
}
