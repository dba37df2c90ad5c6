// SPDX-License-Identifier: GPL-2.0-only
using Batch;

// Runs the batch as ordinary .NET and prints what main.c prints.
const int MemorySize = 256;
const ulong FnvOffset = 14695981039346656037, FnvPrime = 1099511628211;
ulong[] special = [0, 1, ulong.MaxValue, 0x8000_0000_0000_0000, 0x7fff_ffff, 0xffff_ffff_8000_0000, 255, 0x1_0000_0000];
bool isVerbose = args is ["-v"];
ulong checksum = FnvOffset;

unsafe
{
    byte* memory = stackalloc byte[MemorySize];
    for (int function = 0; function < Table.Count; function++)
    {
        for (ulong run = 0; run < 12; run++)
        {
            ulong state = ((ulong)function << 8) + run;
            ulong Next() => state = (state * 6364136223846793005) + 1442695040888963407;
            for (int i = 0; i < MemorySize; i++)
            {
                memory[i] = (byte)(Next() >> 40);
            }

            ulong Input() => (Next() >> 60) < 6 ? special[(Next() >> 40) % 8] : Next() ^ (Next() >> 29);
            ulong a = Input(), b = Input(), c = Input();
            ulong value = 0;
            int trapped = 0;
            try
            {
                value = Table.Call(function, a, b, c, memory);
            }
            catch (Exception e) when (e is IndexOutOfRangeException or OverflowException or DivideByZeroException
                or ArgumentException)
            {
                trapped = 1;
            }

            ulong hash = FnvOffset;
            for (int i = 0; i < MemorySize; i++)
            {
                hash = (hash ^ memory[i]) * FnvPrime;
            }

            checksum = (((checksum ^ value) * FnvPrime) ^ hash ^ (ulong)trapped) * FnvPrime;
            if (isVerbose)
            {
                Console.WriteLine($"{function} {run} {trapped} {value:x16} {hash:x16}");
            }
        }
    }
}

Console.WriteLine($"batch: {Table.Count} functions, checksum {checksum:x16}");
