// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>The state in which a test's guest starts.</summary>
enum GuestMode
{
    /// <summary>16-bit real mode, all segment bases 0.</summary>
    Real,

    /// <summary>16-bit code in protected mode without paging, segments flat.</summary>
    Protected16,

    /// <summary>32-bit protected mode without paging.</summary>
    Protected,

    /// <summary>32-bit protected mode, two-level page tables.</summary>
    Paged,

    /// <summary>32-bit protected mode, PAE page tables.</summary>
    Pae,

    /// <summary>32-bit code under long mode's page tables.</summary>
    Compatibility,

    /// <summary>64-bit mode.</summary>
    Long,
}

static class GuestModes
{
    public static readonly GuestMode[] All = Enum.GetValues<GuestMode>();

    /// <summary>As in names of tests.</summary>
    public static string Label(this GuestMode mode) => mode.ToString().ToLowerInvariant();

    public static int CodeBits(this GuestMode mode) => mode switch
    {
        GuestMode.Real or GuestMode.Protected16 => 16,
        GuestMode.Long => 64,
        _ => 32,
    };

    public static bool HasPaging(this GuestMode mode) => mode >= GuestMode.Paged;

    public static bool IsLongMode(this GuestMode mode) => mode >= GuestMode.Compatibility;
}
