// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;

namespace SharpKvm.Lab;

/// <summary>Runs a program of the host to its end.</summary>
public static class Tool
{
    /// <summary>What a program left behind.</summary>
    public sealed record Result(int ExitCode, string Output, string Errors)
    {
        /// <summary>True when the program said that all was well.</summary>
        public bool Succeeded => ExitCode == 0;
    }

    /// <summary>Runs a program; its standard input is <paramref name="input"/>, or empty.</summary>
    public static Result Run(string program, IEnumerable<string> arguments, string? workingFolder = null,
                             byte[]? input = null)
    {
        using Process process = Start(program, arguments, workingFolder);
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> errors = process.StandardError.ReadToEndAsync();
        Feed(process, input);
        process.WaitForExit();
        return new Result(process.ExitCode, output.Result, errors.Result);
    }

    /// <summary>Like <see cref="Run"/>, for a program whose output is bytes, not text.</summary>
    public static byte[] RunForBytes(string program, IEnumerable<string> arguments, byte[] input)
    {
        using Process process = Start(program, arguments, workingFolder: null);
        Task<string> errors = process.StandardError.ReadToEndAsync();
        using var output = new MemoryStream();
        Task copying = process.StandardOutput.BaseStream.CopyToAsync(output);
        Feed(process, input);
        copying.Wait();
        process.WaitForExit();
        return process.ExitCode == 0
            ? output.ToArray()
            : throw new LabException($"{program} ended with {process.ExitCode}: {errors.Result.Trim()}");
    }

    /// <summary>Like <see cref="Run"/>, but a program that fails is an error with what it printed.</summary>
    public static string Require(string program, IEnumerable<string> arguments, string? workingFolder = null)
    {
        Result result = Run(program, arguments, workingFolder);
        string said = (result.Errors + result.Output).Trim();
        return result.Succeeded
            ? result.Output
            : throw new LabException($"{program} ended with {result.ExitCode}: {said}");
    }

    /// <summary>The full path of a program on PATH (or in the system folders), or null.</summary>
    public static string? Find(string program)
    {
        string path = $"{Environment.GetEnvironmentVariable("PATH")}:/usr/sbin:/sbin:/usr/bin:/bin";
        return path.Split(':', StringSplitOptions.RemoveEmptyEntries)
            .Select(folder => Path.Combine(folder, program))
            .FirstOrDefault(File.Exists);
    }

    private static Process Start(string program, IEnumerable<string> arguments, string? workingFolder)
    {
        string path = Find(program) ?? throw new LabException($"the program '{program}' is missing: run tools/setup");
        return Process.Start(new ProcessStartInfo(path, arguments)
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            WorkingDirectory = workingFolder ?? "",
        })!;
    }

    private static void Feed(Process process, byte[]? input)
    {
        try
        {
            process.StandardInput.BaseStream.Write(input ?? []);
            process.StandardInput.Close();
        }
        catch (IOException)
        {
            // The program ended without reading all of it: its exit code tells the story.
        }
    }
}
