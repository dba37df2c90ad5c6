// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public abstract class Attribute;
