// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>Keeps several lab processes from filling the same cache folder at once.</summary>
internal static class CacheLock
{
    /// <summary>Makes something once.</summary>
    /// <param name="result">A file, which <paramref name="make"/> must leave complete or not at all.</param>
    /// <param name="make">Runs only when the file is missing.</param>
    /// <param name="name">The lock: things that share a folder share it.</param>
    /// <param name="patience">How long another process may hold the lock; five minutes when null.</param>
    public static void MakeOnce(string result, Action make, string name = "lock", TimeSpan? patience = null)
    {
        if (File.Exists(result))
        {
            return;
        }

        using FileStream held = Take(Path.Combine(Repository.Cache, name), patience ?? TimeSpan.FromMinutes(5));
        if (!File.Exists(result))
        {
            make();
        }
    }

    /// <summary>Writes a file so that nobody ever sees a part of it.</summary>
    public static void WriteWhole(string path, byte[] content)
    {
        Directory.CreateDirectory(Path.GetDirectoryName(path)!);
        string partial = $"{path}.{Environment.ProcessId}.part";
        File.WriteAllBytes(partial, content);
        File.Move(partial, path, overwrite: true);
    }

    private static FileStream Take(string path, TimeSpan patience)
    {
        DateTime limit = DateTime.UtcNow + patience;
        while (true)
        {
            try
            {
                return new FileStream(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);
            }
            catch (IOException) when (DateTime.UtcNow < limit)
            {
                Thread.Sleep(200);
            }
        }
    }
}
