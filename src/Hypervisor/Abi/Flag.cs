// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Abi;

/// <summary>Yes and no as the UAPI has them.</summary>
internal static class Flag
{
    public static byte Of(bool value) => value ? (byte)1 : (byte)0;
}
