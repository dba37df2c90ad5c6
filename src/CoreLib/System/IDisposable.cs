// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public interface IDisposable
{
    void Dispose();
}
