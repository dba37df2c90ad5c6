// SPDX-License-Identifier: GPL-2.0-only
namespace System;

/// <summary>Known to the compiler, refused by the IL pass: errors are return values.</summary>
public class Exception
{
    public Exception()
    {
    }

    public Exception(string? message) => Message = message;

    public string? Message { get; }
}
