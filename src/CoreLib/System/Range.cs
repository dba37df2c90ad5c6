// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct Range(Index start, Index end)
{
    public Index Start => start;

    public Index End => end;

    public static Range All => new(Index.Start, Index.End);

    public static Range StartAt(Index start) => new(start, Index.End);

    public static Range EndAt(Index end) => new(Index.Start, end);

    public (int Offset, int Length) GetOffsetAndLength(int length)
    {
        int first = start.GetOffset(length);
        int last = end.GetOffset(length);
        if ((uint)last > (uint)length || (uint)first > (uint)last)
        {
            ThrowHelper.OutOfRange();
        }

        return (first, last - first);
    }
}
