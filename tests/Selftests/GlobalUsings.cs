// SPDX-License-Identifier: GPL-2.0-only
global using Iced.Intel;
global using SharpKvm.Client;
global using static Iced.Intel.AssemblerRegisters;
