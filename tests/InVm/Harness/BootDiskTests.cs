// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;
using System.Runtime.InteropServices;

namespace SharpKvm.InVm.Harness;

/// <summary>The disk that L1 boots from where the emulator loads no kernel: its first sector finds everything.</summary>
[TestFixture]
public sealed class BootDiskTests
{
    private const int Sector = 512, FirstRange = 0x104;
    private const uint StartInfo = 0x9000, StartInfoMagic = 0x336ec578, Initramfs = 256 << 20;

    private readonly byte[] initramfs = [.. Enumerable.Repeat((byte)7, 1000)];
    private byte[] disk = [];
    private Dictionary<uint, byte[]> ranges = [];

    [OneTimeSetUp]
    public void Write()
    {
        string path = Path.Combine(Repository.Folder("lab"), $"boot-disk-{Environment.ProcessId}");
        BootDisk.Write(path, File.ReadAllBytes(L1Kernel.Debian.BootImage()), initramfs, "one two");
        disk = File.ReadAllBytes(path);
        File.Delete(path);
        uint[] table = MemoryMarshal.Cast<byte, uint>(disk.AsSpan(FirstRange, Sector - FirstRange - 2)).ToArray();
        ranges = table.Chunk(3).TakeWhile(range => range[2] > 0).ToDictionary(
            range => range[0], range => disk.AsSpan((int)range[1] * Sector, (int)range[2] * Sector).ToArray());
    }

    [Test]
    public void IsBootableAndOfWholeCylinders()
    {
        Assert.That(disk[510..512], Is.EqualTo((byte[])[0x55, 0xaa]));
        Assert.That(disk.Length % BootDisk.CylinderSize, Is.Zero);
    }

    [Test]
    public void EntryPointLiesInTheKernelThatIsLoaded()
    {
        uint entry = BinaryPrimitives.ReadUInt32LittleEndian(disk.AsSpan(FirstRange - sizeof(uint)));
        Assert.That(ranges, Has.Some.Matches<KeyValuePair<uint, byte[]>>(
            range => entry > range.Key && entry < range.Key + range.Value.Length));
    }

    [Test]
    public void InitramfsIsWhereTheStartInfoSays()
    {
        uint[] info = MemoryMarshal.Cast<byte, uint>(ranges[StartInfo].AsSpan()).ToArray();
        uint[] module = MemoryMarshal.Cast<byte, uint>(ranges[StartInfo].AsSpan((int)(info[4] - StartInfo))).ToArray();
        Assert.That(info[0], Is.EqualTo(StartInfoMagic));
        Assert.That(info[3], Is.EqualTo(1), "one module");
        Assert.That((module[0], module[2]), Is.EqualTo((Initramfs, (uint)initramfs.Length)));
        Assert.That(ranges[Initramfs][..initramfs.Length], Is.EqualTo(initramfs));
    }

    [Test]
    public void CommandLineIsThere()
    {
        uint address = BinaryPrimitives.ReadUInt32LittleEndian(ranges[StartInfo].AsSpan(24));
        Assert.That(
            ranges[StartInfo].AsSpan((int)(address - StartInfo), 8).ToArray(), Is.EqualTo("one two\0"u8.ToArray()));
    }

    [Test]
    public void KernelThatIsNoElfFileIsRefused() => Assert.That(
        () => BootDisk.Write("/dev/null", new byte[4096], initramfs, ""), Throws.InstanceOf<LabException>());
}
