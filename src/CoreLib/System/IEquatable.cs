// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public interface IEquatable<T>
    where T : allows ref struct
{
    bool Equals(T other);
}
