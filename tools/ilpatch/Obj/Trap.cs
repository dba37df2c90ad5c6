// SPDX-License-Identifier: GPL-2.0-only
namespace IlPatch.Obj;

/// <summary>Why the core stopped itself. The kernel side has the texts, in the same order: Native/trap.c.</summary>
internal enum TrapKind
{
    BadAddress,
    IndexOutOfRange,
    Overflow,
    DivideError,
    OutOfRange,
    InvalidArgument,
    InvalidState,
    StackOverrun,
    PrivilegedFault,
}

/// <summary>A place at which the core may stop itself; equal ones of a method share a stub.</summary>
internal readonly record struct Trap(TrapKind Kind, SourceLine Line);
