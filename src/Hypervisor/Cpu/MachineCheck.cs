// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>Machine checks that user space sets up and injects (SDM vol. 3, chapter 16).</summary>
internal static class MachineCheck<TVendor> where TVendor : struct, IVendor
{
    private const ulong Valid = 1ul << 63, Overflow = 1ul << 62, Uncorrected = 1ul << 61;
    private const ulong InProgress = 1 << 2, CountAndVendorBits = 0xff | 0xff0000;
    private const int Ctl = 0, Status = 1, Address = 2, Misc = 3;

    /// <summary>KVM_X86_SETUP_MCE. EINVAL for no bank, more than 32, or a capability that is not supported.</summary>
    public static int SetUp(ref Vcpu vcpu, ulong capability)
    {
        ulong banks = capability & 0xff;
        if (banks is 0 or > MsrState.MaxBanks || (capability & ~(MsrState.McgSupported | CountAndVendorBits)) != 0)
            return Errno.EINVAL;
        ref MsrState msrs = ref vcpu.Msrs;
        msrs.McgCap = capability;
        if ((capability & MsrState.McgCtlPresent) != 0)
            msrs.McgCtl = ~0ul;
        for (int bank = 0; bank < msrs.BankCount; bank++)
            msrs.Banks[bank * MsrState.RegistersPerBank + Ctl] = ~0ul;
        return 0;
    }

    /// <summary>
    /// KVM_X86_SET_MCE: logs an error in its bank; one that is not corrected raises #MC, or shuts the guest down when
    /// it cannot take that. EINVAL for a bank that is not there or a status that is not valid.
    /// </summary>
    public static int Set(ref Vcpu vcpu, in kvm_x86_mce error)
    {
        ref MsrState msrs = ref vcpu.Msrs;
        if (error.bank >= msrs.BankCount || (error.status & Valid) == 0)
            return Errno.EINVAL;
        Span<ulong> bank = ((Span<ulong>)msrs.Banks).Slice(error.bank * MsrState.RegistersPerBank);
        bool uncorrected = (error.status & Uncorrected) != 0;
        bool globallyOff = (msrs.McgCap & MsrState.McgCtlPresent) != 0 && msrs.McgCtl != ~0ul;
        if (uncorrected && (globallyOff || bank[Ctl] != ~0ul))
            return 0;

        ulong old = bank[Status];
        if (uncorrected)
        {
            if ((msrs.McgStatus & InProgress) != 0 || (TVendor.GetCr4(ref vcpu) & Cr4.Mce) == 0)
            {
                vcpu.Events.TripleFault = true;
                return 0;
            }
            msrs.McgStatus = error.mcg_status;
            Exceptions<TVendor>.Queue(ref vcpu, Vector.MachineCheck);
        }
        else if ((old & (Valid | Uncorrected)) == (Valid | Uncorrected))
        {
            bank[Status] = old | Overflow;
            return 0;
        }
        bank[Status] = error.status | ((old & Valid) != 0 ? Overflow : 0);
        bank[Address] = error.addr;
        bank[Misc] = error.misc;
        return 0;
    }
}
