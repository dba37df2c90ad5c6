// SPDX-License-Identifier: GPL-2.0-only
namespace Toolchain;

[TestFixture]
public sealed class CommandLineTests
{
    [TestCase("il")]
    [TestCase("obj")]
    [TestCase("check")]
    public void EveryCommandExplainsItself(string command)
    {
        Tool.Result result = Ilpatch.Run(command, "--help");
        Assert.That(result.ExitCode, Is.Zero);
        Assert.That(result.Output, Does.Contain("--report"));
    }

    [TestCase("il", "missing.dll", "out.dll")]
    [TestCase("obj", "missing.o", "missing.dll", "out.S")]
    [TestCase("check", "missing.ko")]
    public void MissingFileIsExitCodeTwo(params string[] arguments)
    {
        Tool.Result result = Ilpatch.Run(arguments);
        Assert.That(result.ExitCode, Is.EqualTo(2));
        Assert.That(result.Errors, Does.StartWith("ilpatch: "));
    }
}
