// SPDX-License-Identifier: GPL-2.0-only
using Toolchain.Generator;

if (args is not [var seed, var count, var folder])
{
    Console.Error.WriteLine("usage: batchgen SEED COUNT FOLDER   writes Functions.cs and table.h");
    return 2;
}

Batch.Write(int.Parse(seed), int.Parse(count), folder);
return 0;
