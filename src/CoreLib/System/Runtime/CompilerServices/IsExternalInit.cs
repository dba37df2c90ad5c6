// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime.CompilerServices;

public static class IsExternalInit;
