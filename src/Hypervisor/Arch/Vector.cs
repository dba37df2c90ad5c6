// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>Number of an exception or interrupt, an index into the IDT (SDM vol. 3, 6.3.1).</summary>
internal readonly struct Vector(byte value)
{
    public readonly byte Value = value;

    public static Vector Debug => new(1);
    public static Vector Nmi => new(2);
    public static Vector Breakpoint => new(3);
    public static Vector InvalidOpcode => new(6);
    public static Vector DoubleFault => new(8);
    public static Vector GeneralProtection => new(13);
    public static Vector PageFault => new(14);
    public static Vector AlignmentCheck => new(17);
    public static Vector MachineCheck => new(18);

    /// <summary>One of those of which a second makes a double fault.</summary>
    public bool IsContributory => Value is 0 or 10 or 11 or 12 or 13 or 21;

    /// <summary>Pushes an error code (SDM vol. 3, table 6-1).</summary>
    public bool HasErrorCode => Value is 8 or (>= 10 and <= 14) or 17 or 21;

    /// <summary>INT3 and INTO: re-executed rather than injected again.</summary>
    public bool IsSoftException => Value is 3 or 4;
}
