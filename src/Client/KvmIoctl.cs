// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Client;

/// <summary>Request numbers of <c>linux/kvm.h</c> (<c>KVM_…</c>): direction in bits 30 and 31, size of the argument
/// in bits 16 to 29, 0xAE in bits 8 to 15, number in the rest.</summary>
public static class KvmIoctl
{
    const uint None = 0xAEu << 8, Write = None | (1u << 30), Read = None | (2u << 30), ReadWrite = Write | Read;

    public const uint GetApiVersion = None | 0x00;
    public const uint CreateVm = None | 0x01;
    public const uint GetMsrIndexList = ReadWrite | (4 << 16) | 0x02;
    public const uint CheckExtension = None | 0x03;
    public const uint GetVcpuMmapSize = None | 0x04;
    public const uint GetSupportedCpuid = ReadWrite | (8 << 16) | 0x05;
    public const uint GetEmulatedCpuid = ReadWrite | (8 << 16) | 0x09;
    public const uint GetMsrFeatureIndexList = ReadWrite | (4 << 16) | 0x0A;
    public const uint CreateVcpu = None | 0x41;
    public const uint GetDirtyLog = Write | (16 << 16) | 0x42;
    public const uint SetNrMmuPages = None | 0x44;
    public const uint GetNrMmuPages = None | 0x45;
    public const uint SetUserMemoryRegion = Write | (32 << 16) | 0x46;
    public const uint SetTssAddr = None | 0x47;
    public const uint SetIdentityMapAddr = Write | (8 << 16) | 0x48;
    public const uint CreateIrqchip = None | 0x60;
    public const uint IrqLine = Write | (8 << 16) | 0x61;
    public const uint GetIrqchip = ReadWrite | (520 << 16) | 0x62;
    public const uint SetIrqchip = Read | (520 << 16) | 0x63;
    public const uint CreatePit = None | 0x64;
    public const uint IrqLineStatus = ReadWrite | (8 << 16) | 0x67;
    public const uint RegisterCoalescedMmio = Write | (16 << 16) | 0x67;
    public const uint UnregisterCoalescedMmio = Write | (16 << 16) | 0x68;
    public const uint SetGsiRouting = Write | (8 << 16) | 0x6A;
    public const uint ReinjectControl = None | 0x71;
    public const uint Irqfd = Write | (32 << 16) | 0x76;
    public const uint CreatePit2 = Write | (64 << 16) | 0x77;
    public const uint SetBootCpuId = None | 0x78;
    public const uint Ioeventfd = Write | (64 << 16) | 0x79;
    public const uint SetClock = Write | (48 << 16) | 0x7B;
    public const uint GetClock = Read | (48 << 16) | 0x7C;
    public const uint GetPit2 = Read | (112 << 16) | 0x9F;
    public const uint SetPit2 = Write | (112 << 16) | 0xA0;
    public const uint SetTscKhz = None | 0xA2;
    public const uint GetTscKhz = None | 0xA3;
    public const uint SignalMsi = Write | (32 << 16) | 0xA5;
    public const uint CreateDevice = ReadWrite | (12 << 16) | 0xE0;
    public const uint Run = None | 0x80;
    public const uint GetRegs = Read | (144 << 16) | 0x81;
    public const uint SetRegs = Write | (144 << 16) | 0x82;
    public const uint GetSregs = Read | (312 << 16) | 0x83;
    public const uint SetSregs = Write | (312 << 16) | 0x84;
    public const uint Translate = ReadWrite | (24 << 16) | 0x85;
    public const uint Interrupt = Write | (4 << 16) | 0x86;
    public const uint GetMsrs = ReadWrite | (8 << 16) | 0x88;
    public const uint SetMsrs = Write | (8 << 16) | 0x89;
    public const uint SetSignalMask = Write | (4 << 16) | 0x8B;
    public const uint GetFpu = Read | (416 << 16) | 0x8C;
    public const uint SetFpu = Write | (416 << 16) | 0x8D;
    public const uint GetLapic = Read | (1024 << 16) | 0x8E;
    public const uint SetLapic = Write | (1024 << 16) | 0x8F;
    public const uint SetCpuid2 = Write | (8 << 16) | 0x90;
    public const uint GetCpuid2 = ReadWrite | (8 << 16) | 0x91;
    public const uint TprAccessReporting = ReadWrite | (40 << 16) | 0x92;
    public const uint SetVapicAddr = Write | (8 << 16) | 0x93;
    public const uint GetMpState = Read | (4 << 16) | 0x98;
    public const uint SetMpState = Write | (4 << 16) | 0x99;
    public const uint Nmi = None | 0x9A;
    public const uint SetGuestDebug = Write | (72 << 16) | 0x9B;
    public const uint X86SetupMce = Write | (8 << 16) | 0x9C;
    public const uint X86GetMceCapSupported = Read | (8 << 16) | 0x9D;
    public const uint X86SetMce = Write | (64 << 16) | 0x9E;
    public const uint GetVcpuEvents = Read | (64 << 16) | 0x9F;
    public const uint SetVcpuEvents = Write | (64 << 16) | 0xA0;
    public const uint GetDebugregs = Read | (128 << 16) | 0xA1;
    public const uint SetDebugregs = Write | (128 << 16) | 0xA2;
    public const uint EnableCap = Write | (104 << 16) | 0xA3;
    public const uint GetXsave = Read | (4096 << 16) | 0xA4;
    public const uint SetXsave = Write | (4096 << 16) | 0xA5;
    public const uint GetXcrs = Read | (392 << 16) | 0xA6;
    public const uint SetXcrs = Write | (392 << 16) | 0xA7;
    public const uint KvmclockCtrl = None | 0xAD;
    public const uint Smi = None | 0xB7;
    public const uint GetNestedState = ReadWrite | (128 << 16) | 0xBE;
    public const uint SetNestedState = Write | (128 << 16) | 0xBF;
    public const uint ClearDirtyLog = ReadWrite | (24 << 16) | 0xC0;
    public const uint X86SetMsrFilter = Write | (392 << 16) | 0xC6;
    public const uint ResetDirtyRings = None | 0xC7;
    public const uint GetSregs2 = Read | (320 << 16) | 0xCC;
    public const uint SetSregs2 = Write | (320 << 16) | 0xCD;
    public const uint GetStatsFd = None | 0xCE;
    public const uint GetXsave2 = Read | (4096 << 16) | 0xCF;
    public const uint GetOneReg = Write | (16 << 16) | 0xAB;
    public const uint SetOneReg = Write | (16 << 16) | 0xAC;

    /// <summary>The size of the argument that a request number announces.</summary>
    public static int ArgumentSize(uint request) => (int)(request >> 16) & 0x3FFF;
}
