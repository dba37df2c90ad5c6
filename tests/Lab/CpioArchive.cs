// SPDX-License-Identifier: GPL-2.0-only
using System.Text;

namespace SharpKvm.Lab;

/// <summary>
/// Writes the "new ASCII" cpio format that Linux unpacks as an initramfs
/// (Documentation/driver-api/early-userspace/buffer-format.rst). Owner is root, times are zero: same input, same bytes.
/// </summary>
public sealed class CpioArchive
{
    private const int TypeFolder = 0x4000;
    private const int TypeFile = 0x8000;
    private const int TypeDevice = 0x2000;

    private readonly MemoryStream bytes = new();
    private int nextInode = 1;

    /// <summary>Adds an empty folder; parents must have been added before.</summary>
    public void AddFolder(string path) => Add(path, TypeFolder | 0x1ed, []);

    /// <summary>Adds a file.</summary>
    public void AddFile(string path, byte[] content, bool executable = false) =>
        Add(path, TypeFile | (executable ? 0x1ed : 0x1a4), content);

    /// <summary>Adds a character device, which the kernel needs for its first console.</summary>
    public void AddCharacterDevice(string path, int major, int minor) =>
        Add(path, TypeDevice | 0x180, [], major, minor);

    /// <summary>Ends the archive and returns it.</summary>
    public byte[] ToArray()
    {
        Add("TRAILER!!!", 0, []);
        return bytes.ToArray();
    }

    private void Add(string path, int mode, byte[] content, int major = 0, int minor = 0)
    {
        string name = path.TrimStart('/');
        int inode = mode == 0 ? 0 : nextInode++;
        int[] fields =
        [
            inode, mode, 0, 0, 1, 0, content.Length, 0, 0, major, minor, Encoding.UTF8.GetByteCount(name) + 1, 0,
        ];
        Write("070701" + string.Concat(fields.Select(field => field.ToString("x8"))) + name + "\0");
        Align();
        bytes.Write(content);
        Align();
    }

    private void Write(string text) => bytes.Write(Encoding.UTF8.GetBytes(text));

    private void Align()
    {
        while (bytes.Length % 4 != 0)
        {
            bytes.WriteByte(0);
        }
    }
}
