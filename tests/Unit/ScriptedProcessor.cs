// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics.CodeAnalysis;
using System.Runtime.InteropServices;
using SharpKvm.Tests.Host;

namespace SharpKvm.Tests;

/// <summary>
/// A physical CPU that plays a script instead of running guest code, and keeps its control block at every entry. When
/// the script is over a signal arrives, so that KVM_RUN returns EINTR.
/// </summary>
internal abstract class ScriptedProcessor<TTurn, TBlock>(SimulatedThread thread) where TTurn : class
{
    private readonly Queue<TTurn> _script = [];

    /// <summary>The control block each time that the core asked for an entry, the last being the signal's.</summary>
    public List<TBlock> Entries { get; } = [];
    public ref readonly TBlock LastEntry => ref CollectionsMarshal.AsSpan(Entries)[^1];

    /// <summary>Whether a state that the entry would refuse fails the test.</summary>
    public bool ChecksState { get; set; } = true;

    public void Add(params ReadOnlySpan<TTurn> turns)
    {
        foreach (TTurn turn in turns)
            _script.Enqueue(turn);
        thread.SignalPending = false;
    }

    protected bool TryTakeTurn(in TBlock block, [NotNullWhen(true)] out TTurn? turn)
    {
        Entries.Add(block);
        if (_script.TryDequeue(out turn))
            return true;
        thread.SignalPending = true;
        return false;
    }
}

/// <summary>
/// Events injected and interrupted, as both vendors have them (APM vol. 2, 15.20; SDM vol. 3, 25.8.3 and 25.9.3), the
/// error code in the upper half.
/// </summary>
internal static class Injection
{
    public const ulong None = 0;
    public const ulong Nmi = 0x8000_0202;

    public static ulong Interrupt(byte vector) => 0x8000_0000ul | vector;
    public static ulong SoftInterrupt(byte vector) => 0x8000_0400ul | vector;
    /// <summary>INT1; VMX only.</summary>
    public static ulong PrivilegedException(byte vector) => 0x8000_0500ul | vector;
    /// <summary>INT3 or INTO; VMX only.</summary>
    public static ulong SoftException(byte vector) => 0x8000_0600ul | vector;
    public static ulong Exception(byte vector) => 0x8000_0300ul | vector;
    public static ulong Exception(byte vector, uint errorCode) => (ulong)errorCode << 32 | 0x8000_0b00 | vector;
}
