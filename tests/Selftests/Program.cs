// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.Versioning;
using SharpKvm.Selftests;

[assembly: SupportedOSPlatform("linux")]

return Options.Parse(args) is { } options ? Runner.Start(options) : 2;
