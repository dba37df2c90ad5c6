// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Selftests;

/// <summary>One behaviour: a name <c>group/name</c> and the code that throws when it is not so.</summary>
/// <param name="Own">Run it in a process of its own, because it changes the process or leaves things behind.</param>
sealed record TestCase(string Name, Action Body, bool Own = false);

/// <summary>The behaviour under test is wrong.</summary>
sealed class TestFailure(string message) : Exception(message);

/// <summary>The host cannot show this behaviour.</summary>
sealed class TestSkipped(string reason) : Exception(reason);

/// <summary>Expectations; each throws <see cref="TestFailure"/> with both values.</summary>
static class Check
{
    public static void That(bool condition, string what)
    {
        if (!condition)
            throw new TestFailure(what);
    }

    public static void Equal<T>(T expected, T actual, string what)
    {
        if (!EqualityComparer<T>.Default.Equals(expected, actual))
            throw new TestFailure($"{what}: expected {Show(expected)}, got {Show(actual)}");
    }

    /// <summary>Two structures of the kernel's are the same, byte for byte.</summary>
    public static void Same<T>(T expected, T actual, string what) where T : unmanaged
    {
        ReadOnlySpan<byte> left = MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in expected));
        ReadOnlySpan<byte> right = MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in actual));
        int at = left.CommonPrefixLength(right);
        if (at == left.Length)
            return;
        int word = at & ~7, length = Math.Min(8, left.Length - word);
        throw new TestFailure($"{what}: differs at byte {at} of {left.Length}: expected" +
            $" {Convert.ToHexString(left.Slice(word, length))}, got {Convert.ToHexString(right.Slice(word, length))}");
    }

    /// <summary>A raw call's answer: <see cref="Errno.None"/> for any result that is not negative.</summary>
    public static void Fails(Errno expected, int result, string what) =>
        Equal(expected, result < 0 ? (Errno)(-result) : Errno.None, what);

    public static void Succeeds(int result, string what) => Fails(Errno.None, result, what);

    public static void Bytes(ReadOnlySpan<byte> expected, ReadOnlySpan<byte> actual, string what)
    {
        if (!expected.SequenceEqual(actual))
            throw new TestFailure(
                $"{what}: expected {Convert.ToHexString(expected)}, got {Convert.ToHexString(actual)}");
    }

    /// <summary>Leaves the test as skipped unless the host has what it takes.</summary>
    public static void Needs(bool present, string what)
    {
        if (!present)
            throw new TestSkipped($"the host lacks {what}");
    }

    /// <summary>Leaves the test as skipped unless the device has this capability, or one of these bits of it.</summary>
    public static void Needs(KvmCap capability, int bits = ~0)
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        Needs((kvm.CheckExtension(capability) & bits) != 0, $"capability {capability}");
    }

    static string Show<T>(T value) => value switch
    {
        ulong number => $"0x{number:x}",
        uint number => $"0x{number:x}",
        ushort number => $"0x{number:x}",
        byte number => $"0x{number:x}",
        _ => value?.ToString() ?? "null",
    };
}
