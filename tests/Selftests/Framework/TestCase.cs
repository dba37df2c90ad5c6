// SPDX-License-Identifier: GPL-2.0-only
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

    static string Show<T>(T value) => value switch
    {
        ulong number => $"0x{number:x}",
        uint number => $"0x{number:x}",
        ushort number => $"0x{number:x}",
        byte number => $"0x{number:x}",
        _ => value?.ToString() ?? "null",
    };
}
