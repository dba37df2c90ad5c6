// SPDX-License-Identifier: GPL-2.0-only
namespace System;

internal sealed class RuntimeType : Type;
