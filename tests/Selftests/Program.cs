// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Selftests;

return Options.Parse(args) is { } options ? Runner.Start(options) : 2;
