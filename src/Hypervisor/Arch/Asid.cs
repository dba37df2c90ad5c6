// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>
/// Identifier of cached translations: ASID (APM vol. 2, 15.16) or VPID (SDM vol. 3, 29.1). 0 belongs to the host; 1 is
/// shared by all vCPUs that find no other, and says that nothing may be kept from one entry to the next.
/// </summary>
internal readonly struct Asid(uint value)
{
    public const uint Shared = 1;
    public readonly uint Value = value;
    public bool IsOwn => Value > Shared;
}
