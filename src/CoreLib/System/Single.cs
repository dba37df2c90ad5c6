// SPDX-License-Identifier: GPL-2.0-only
namespace System;

/// <summary>Known to the compiler, refused by the IL pass: kernel code has no floating point.</summary>
public struct Single;
