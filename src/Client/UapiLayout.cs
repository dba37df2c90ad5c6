// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;

namespace SharpKvm.Client;

/// <summary>Proves the structures' layouts: each size is the one that the kernel's request number announces.</summary>
public static class UapiLayout
{
    /// <summary>Every structure that differs from the kernel's, with both sizes; empty when all is well.</summary>
    public static IReadOnlyList<string> Mismatches()
    {
        List<string> wrong = [];
        Check<KvmRegs>(KvmIoctl.GetRegs);
        Check<KvmSregs>(KvmIoctl.GetSregs);
        Check<KvmSregs2>(KvmIoctl.GetSregs2);
        Check<KvmFpu>(KvmIoctl.GetFpu);
        Check<KvmUserspaceMemoryRegion>(KvmIoctl.SetUserMemoryRegion);
        Check<KvmDirtyLog>(KvmIoctl.GetDirtyLog);
        Check<KvmClearDirtyLog>(KvmIoctl.ClearDirtyLog);
        Check<KvmEnableCap>(KvmIoctl.EnableCap);
        Check<KvmMpState>(KvmIoctl.GetMpState);
        Check<KvmTranslation>(KvmIoctl.Translate);
        Check<KvmDebugregs>(KvmIoctl.GetDebugregs);
        Check<KvmGuestDebug>(KvmIoctl.SetGuestDebug);
        Check<KvmVcpuEvents>(KvmIoctl.GetVcpuEvents);
        Check<KvmXcrs>(KvmIoctl.GetXcrs);
        Check<KvmXsave>(KvmIoctl.GetXsave);
        Check<KvmClockData>(KvmIoctl.GetClock);
        Check<KvmIrqchip>(KvmIoctl.GetIrqchip);
        Check<KvmLapicState>(KvmIoctl.GetLapic);
        Check<KvmIrqLevel>(KvmIoctl.IrqLine);
        Check<KvmPitConfig>(KvmIoctl.CreatePit2);
        Check<KvmPitState2>(KvmIoctl.GetPit2);
        Check<KvmMsi>(KvmIoctl.SignalMsi);
        Check<KvmIrqfd>(KvmIoctl.Irqfd);
        Check<KvmIoeventfd>(KvmIoctl.Ioeventfd);
        Check<KvmCoalescedMmioZone>(KvmIoctl.RegisterCoalescedMmio);
        CheckSize<KvmPicState>(16);
        CheckSize<KvmIoapicState>(216);
        CheckSize<KvmPitChannelState>(24);
        CheckSize<KvmReinjectControl>(32);
        CheckSize<KvmIrqRoutingEntry>(48);
        CheckSize<KvmCoalescedMmio>(24);
        CheckSize<KvmCoalescedMmioRing>(8 + 170 * 24);
        CheckSize<KvmMsrEntry>(16);
        CheckSize<KvmCpuidEntry2>(40);
        CheckSize<KvmSegment>(24);
        CheckSize<KvmRunMmio>(24);
        CheckSize<KvmRunInternal>(136);
        CheckSize<KvmRunEmulationFailure>(32);
        return wrong;

        void Check<T>(uint request) => CheckSize<T>(KvmIoctl.ArgumentSize(request));

        void CheckSize<T>(int expected)
        {
            if (Unsafe.SizeOf<T>() != expected)
                wrong.Add($"{typeof(T).Name}: {Unsafe.SizeOf<T>()} bytes, the kernel has {expected}");
        }
    }
}
