// SPDX-License-Identifier: GPL-2.0-only
using static SharpKvm.Abi.kvm_guest_debug;

namespace SharpKvm.Cpu;

/// <summary>The guest's breakpoints, and a debugger's in user space (KVM_SET_GUEST_DEBUG), which go first.</summary>
internal struct DebugState
{
    /// <summary>Value of KVM_CAP_SET_GUEST_DEBUG2.</summary>
    public const uint SupportedControl = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
        | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP;

    /// <summary>The guest's DR0-3.</summary>
    public InlineArray4<ulong> Guest;
    public ulong Dr6 { readonly get; set => field = value & DebugBits.Dr6Writable | DebugBits.Dr6Fixed; }
    /// <summary>The guest's DR7 while user space's is in effect.</summary>
    public ulong GuestDr7;
    public InlineArray4<ulong> User;
    /// <summary>KVM_GUESTDBG_* in force; 0 without ENABLE.</summary>
    public uint Control;

    public readonly bool SingleSteps => (Control & KVM_GUESTDBG_SINGLESTEP) != 0;
    public readonly bool SoftwareBreakpoints => (Control & KVM_GUESTDBG_USE_SW_BP) != 0;
    public readonly bool HardwareBreakpoints => (Control & KVM_GUESTDBG_USE_HW_BP) != 0;

    /// <summary>
    /// Vectors that exit. Debug and alignment-check loops would hang the CPU (no interrupt gets between their
    /// deliveries). Of the undefined instructions one is carried out. Machine checks are the host's.
    /// </summary>
    public readonly uint InterceptedExceptions =>
        1 << 1 | 1 << 6 | 1 << 17 | 1 << 18 | (SoftwareBreakpoints ? 1u << 3 : 0);

    /// <summary>What hardware gets as RFLAGS: stepping by user space sets TF behind the guest's back.</summary>
    [MethodImpl(AggressiveInlining)]
    public readonly ulong EntryRflags(ulong rflags) => SingleSteps ? rflags | Rflags.Tf : rflags;

    /// <summary>What the guest has after an exit: while stepped, the TF that it had before.</summary>
    [MethodImpl(AggressiveInlining)] public readonly ulong ExitRflags(ulong hardware, ulong before) =>
        SingleSteps ? hardware & ~Rflags.Tf | before & Rflags.Tf : hardware;
}

/// <summary>Debug registers (SDM vol. 3, 18.2) and debugging by user space.</summary>
internal static class Debugging<TVendor> where TVendor : struct, IVendor
{
    /// <summary>MOV r, DRn.</summary>
    public static DebugAccess TryGet(ref Vcpu vcpu, int register, out ulong value)
    {
        DebugAccess access = Check(ref vcpu, ref register);
        value = access != DebugAccess.Done ? 0 : register == 6 ? vcpu.Debug.Dr6
            : register == 7 ? GetDr7(ref vcpu) : vcpu.Debug.Guest[register];
        return access;
    }

    /// <summary>MOV DRn, r. Upper halves of DR6 and DR7 must be zero.</summary>
    public static DebugAccess TrySet(ref Vcpu vcpu, int register, ulong value)
    {
        DebugAccess access = Check(ref vcpu, ref register);
        if (access != DebugAccess.Done)
            return access;
        if (register >= 6 && value >> 32 != 0)
            return DebugAccess.Protection;
        if (register == 6)
            vcpu.Debug.Dr6 = value;
        else if (register == 7)
            SetDr7(ref vcpu, value);
        else
            vcpu.Debug.Guest[register] = value;
        Apply(ref vcpu);
        return DebugAccess.Done;
    }

    /// <summary>Privilege, the aliases DR4 and DR5, and general detect (SDM vol. 3, 18.2.2 and 18.2.4).</summary>
    private static DebugAccess Check(ref Vcpu vcpu, ref int register)
    {
        register &= 7;
        if (register is 4 or 5)
        {
            if ((TVendor.GetCr4(ref vcpu) & Cr4.De) != 0)
                return DebugAccess.Undefined;
            register += 2;
        }
        if (TVendor.GetCpl(ref vcpu) != 0)
            return DebugAccess.Protection;
        if ((GetDr7(ref vcpu) & DebugBits.Dr7Gd) == 0)
            return DebugAccess.Done;
        Exceptions<TVendor>.Queue(ref vcpu, Vector.Debug, payload: DebugBits.Dr6Bd);
        return DebugAccess.Debug;
    }

    /// <summary>The guest's own DR7.</summary>
    public static ulong GetDr7(ref Vcpu vcpu) =>
        vcpu.Debug.HardwareBreakpoints ? vcpu.Debug.GuestDr7 : TVendor.GetDr7(ref vcpu);

    /// <summary><see cref="Apply"/> must follow.</summary>
    public static void SetDr7(ref Vcpu vcpu, ulong value)
    {
        vcpu.Debug.GuestDr7 = value & DebugBits.Dr7Writable | DebugBits.Dr7Fixed;
        if (!vcpu.Debug.HardwareBreakpoints)
            TVendor.SetDr7(ref vcpu, vcpu.Debug.GuestDr7);
    }

    /// <summary>Puts the breakpoints in effect where the world switch finds them.</summary>
    public static void Apply(ref Vcpu vcpu)
    {
        ref DebugState state = ref vcpu.Debug;
        vcpu.Shared.Dr = state.HardwareBreakpoints ? ref state.User : ref state.Guest;
        bool enabled = (TVendor.GetDr7(ref vcpu) & DebugBits.Dr7Enable) != 0;
        vcpu.Shared.Set(EntryFlags.LoadDebugRegisters, enabled);
        TVendor.UpdateDebug(ref vcpu);
    }

    /// <summary>
    /// KVM_SET_GUEST_DEBUG. EINVAL for flags that are not supported, EBUSY to inject while an exception waits.
    /// </summary>
    public static int SetGuestDebug(ref Vcpu vcpu, in kvm_guest_debug debug)
    {
        const uint Inject = KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP;
        ref DebugState state = ref vcpu.Debug;
        if ((debug.control & ~DebugState.SupportedControl) != 0)
            return Errno.EINVAL;
        if ((debug.control & Inject) != 0)
        {
            if (vcpu.Events.HasException)
                return Errno.EBUSY;
            bool step = (debug.control & KVM_GUESTDBG_INJECT_DB) != 0;
            Exceptions<TVendor>.Queue(ref vcpu, step ? Vector.Debug : Vector.Breakpoint);
        }
        ulong guestDr7 = GetDr7(ref vcpu);
        state.Control = (debug.control & KVM_GUESTDBG_ENABLE) != 0 ? debug.control & ~Inject : 0;
        ((ReadOnlySpan<ulong>)debug.debugreg).Slice(0, 4).CopyTo(state.User);
        // A debugger's GD would trap the guest's own accesses.
        ulong userDr7 = debug.debugreg[7] & DebugBits.Dr7Writable & ~DebugBits.Dr7Gd | DebugBits.Dr7Fixed;
        state.GuestDr7 = guestDr7;
        TVendor.SetDr7(ref vcpu, state.HardwareBreakpoints ? userDr7 : guestDr7);
        Apply(ref vcpu);
        return 0;
    }
}
