// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime.InteropServices;

public enum UnmanagedType
{
    Bool = 2,
}
