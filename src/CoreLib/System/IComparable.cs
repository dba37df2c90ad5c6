// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public interface IComparable<in T>
    where T : allows ref struct
{
    int CompareTo(T other);
}
