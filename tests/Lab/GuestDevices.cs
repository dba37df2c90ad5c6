// SPDX-License-Identifier: GPL-2.0-only
using System.Security.Cryptography;
using System.Text;

namespace SharpKvm.Lab;

/// <summary>
/// The virtio devices of a guest and what it must find there: a disk of known content, networks over which it gets and
/// sends a text, and random numbers. One more device carries its kernel log out.
/// </summary>
public static class GuestDevices
{
    private const int DiskBytes = 64 << 20;
    private const int PayloadBytes = 4 << 20;

    private static readonly Lazy<DataFile> Disk = new(MakeDisk);
    private static readonly Lazy<DataFile> Payload = new(MakePayload);

    /// <summary>MD5 of the whole disk, as <c>md5sum</c> prints it.</summary>
    public static string DiskSum => Disk.Value.Sum;

    /// <summary>MD5 of what goes over each network in both directions.</summary>
    public static string PayloadSum => Payload.Value.Sum;

    /// <summary>Shell commands for L1, to run once before the guests: the other end of the networks.</summary>
    public static string Prepare => $"serve '{Payload.Value.Path}' && tap";

    /// <summary>The file in L1 to which a guest's kernel log goes.</summary>
    public static string KernelLogFile(string guest) => $"{guest}.dmesg";

    /// <summary>
    /// The devices, for QEMU's command line. The random numbers interrupt by a shared, level-triggered line, the others
    /// by messages.
    /// </summary>
    public static string QemuArguments(string guest) => $"""
        \
            -drive 'file={Disk.Value.Path},if=none,id=disk,format=raw,readonly=on' \
            -device virtio-blk-pci,drive=disk \
            -netdev user,id=user -device virtio-net-pci,netdev=user,romfile= \
            -netdev tap,id=tap,ifname=tap0,script=no,downscript=no,vhost=on,vhostforce=on \
            -device virtio-net-pci,netdev=tap,romfile=,mac=52:54:00:12:34:57 \
            -object rng-random,filename=/dev/urandom,id=random -device virtio-rng-pci,rng=random,vectors=0 \
            -chardev file,id=log,path=/job/{KernelLogFile(guest)} \
            -device virtio-serial-pci -device virtserialport,chardev=log
        """;

    private static DataFile MakeDisk() => Make("disk.raw", RandomBytes(seed: 1, DiskBytes));

    /// <summary>A text, because busybox's wget sends a file up to its first zero only.</summary>
    private static DataFile MakePayload() =>
        Make("payload.txt", Encoding.ASCII.GetBytes(Convert.ToHexString(RandomBytes(seed: 2, PayloadBytes / 2))));

    private static byte[] RandomBytes(int seed, int count)
    {
        var bytes = new byte[count];
        new Random(seed).NextBytes(bytes);
        return bytes;
    }

    private static DataFile Make(string name, byte[] content)
    {
        string path = Path.Combine(Repository.Folder("lab"), name);
        CacheLock.WriteWhole(path, content);
        return new DataFile(path, Convert.ToHexStringLower(MD5.HashData(content)));
    }

    private sealed record DataFile(string Path, string Sum);
}
