// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Paravirt;

/// <summary>A page that Linux fetches while its vCPU runs on.</summary>
internal struct FetchedPage
{
    public Gfn Frame;
    /// <summary>What the guest knows it by.</summary>
    public uint Token;
}

/// <summary>A vCPU's pages under way, and its guest's MSRs about them.</summary>
internal struct AsyncFaultState
{
    /// <summary>
    /// MSR_KVM_ASYNC_PF_EN: user mode only without this bit; told of pages by interrupt with this one.
    /// </summary>
    public const ulong InAllRings = 1 << 1, ByInterrupt = 1 << 3;
    /// <summary>The record is aligned to 64 bytes; bit 2 is about nested guests, which there are none of.</summary>
    public const ulong Reserved = 0x30;
    public const int Limit = 32;

    [InlineArray(Limit)] private struct FetchedPages { private FetchedPage _first; }

    private FetchedPages _pages;
    /// <summary>MSR_KVM_ASYNC_PF_EN and MSR_KVM_ASYNC_PF_INT.</summary>
    public ulong Control, Vector;
    /// <summary>A bit for each page that the guest has been told is missing, and of these, that is there now.</summary>
    public uint Missing, Ready;
    /// <summary>Pages that have come, whether or not the guest still waits: set by others, atomically.</summary>
    public uint Arrived;
    /// <summary>The guest has yet to acknowledge the last page that it was told is there.</summary>
    public bool IsTold;
    /// <summary>The guest comes from elsewhere: all that waits in it is woken.</summary>
    public bool WakesAll;
    private uint _count;

    public readonly bool IsEnabled =>
        (Control & (ParavirtState.Enabled | ByInterrupt)) == (ParavirtState.Enabled | ByInterrupt);

    /// <summary>struct kvm_vcpu_pv_apf_data.</summary>
    public readonly Gpa Record => new(Control & ~0x3ful);

    [UnscopedRef] public ref FetchedPage this[int number] => ref _pages[number];

    /// <summary>
    /// A page has been fetched, or cannot be: the guest finds out when it tries again. From any thread.
    /// </summary>
    public static void Arrive(ref Vcpu vcpu, int number)
    {
        Interlocked.Or(ref vcpu.Paravirt.Faults.Arrived, 1u << number);
        vcpu.Shared.RequestNow(VcpuRequests.Page);
    }

    public readonly bool IsMissing(Gfn frame)
    {
        for (uint left = Missing; left != 0; left &= left - 1)
        {
            if (_pages[BitOperations.TrailingZeroCount(left)].Frame.Value == frame.Value)
                return true;
        }
        return false;
    }

    /// <summary>Never 0, nor all ones; no two vCPUs have the same.</summary>
    public uint NextToken(uint id) => (_count++ % 0xf_fffe + 1) << 12 | id;
}

/// <summary>
/// Asynchronous page faults: instead of waiting for a page that Linux must read first, the guest hears that it is
/// missing by a #PF with a token in CR2, runs another task, and hears by an interrupt that the page is there
/// (Documentation/virt/kvm/x86/msr.rst, MSR_KVM_ASYNC_PF_EN). By the vCPU's own thread, but for
/// <see cref="AsyncFaultState.Arrive"/>.
/// </summary>
internal static class AsyncFaults<TVendor> where TVendor : struct, IVendor
{
    private const uint NotPresent = 1, AllTokens = ~0u;
    private const ulong TokenOffset = 4;

    /// <summary>MSR_KVM_ASYNC_PF_EN was written. What was under way is forgotten.</summary>
    public static void Enable(ref Vcpu vcpu, bool host)
    {
        ref AsyncFaultState state = ref vcpu.Paravirt.Faults;
        state.Missing = state.Ready = 0;
        state.IsTold = false;
        state.WakesAll = host && state.IsEnabled;
        vcpu.Shared.Request(VcpuRequests.Page);
    }

    /// <summary>Whether the guest could be told now that a page is missing.</summary>
    [MethodImpl(AggressiveInlining)] public static bool CanTell(ref Vcpu vcpu) => vcpu.Paravirt.Faults.IsEnabled
        && ((vcpu.Paravirt.Faults.Control & AsyncFaultState.InAllRings) != 0 || TVendor.GetCpl(ref vcpu) != 0)
        && Exceptions<TVendor>.CanAcceptInterrupt(ref vcpu);

    /// <summary>
    /// Has the page fetched, and tells the guest. False: it is to be waited for, because the guest has not read the
    /// last notice, waits for this page already, or for too many.
    /// </summary>
    public static bool TryTell(ref Vcpu vcpu, Gpa address, bool write)
    {
        ref AsyncFaultState state = ref vcpu.Paravirt.Faults;
        int number = BitOperations.TrailingZeroCount(~state.Missing);
        if (number == AsyncFaultState.Limit || state.IsMissing(address.Frame)
            || !GuestMemory.TryRead(ref vcpu.Vm, state.Record, out uint reason) || reason != 0
            || !vcpu.Vm.Memory.Slots.Find(address).TryToHva(address.Frame.Address, out Hva hva)
            || !vcpu.Shared.Host.FetchPage(hva, write, number)
            || !GuestMemory.TryWrite(ref vcpu.Vm, state.Record, NotPresent))
            return false;
        uint token = state.NextToken(vcpu.Id);
        state[number] = new() { Frame = address.Frame, Token = token };
        state.Missing |= 1u << number;
        Exceptions<TVendor>.Queue(ref vcpu, Vector.PageFault, 0, token);
        return true;
    }

    /// <summary>Tells the guest of one page that is there, once it has acknowledged the last.</summary>
    public static void TellReady(ref Vcpu vcpu)
    {
        ref AsyncFaultState state = ref vcpu.Paravirt.Faults;
        state.Ready |= Interlocked.Exchange(ref state.Arrived, 0) & state.Missing;
        if (state.IsTold || state.Ready == 0 && !state.WakesAll
            || !GuestMemory.TryRead(ref vcpu.Vm, state.Record + TokenOffset, out uint last) || last != 0)
            return;
        int number = BitOperations.TrailingZeroCount(state.Ready);
        uint told = state.WakesAll ? 0 : 1u << number, token = state.WakesAll ? AllTokens : state[number].Token;
        if (!GuestMemory.TryWrite(ref vcpu.Vm, state.Record + TokenOffset, token))
            return;
        state.Ready &= ~told;
        state.Missing &= ~told;
        state.WakesAll = false;
        state.IsTold = true;
        ApicBus.Send(ref vcpu.Vm,
            new() { Shorthand = Shorthand.Self, Vector = new Vector((byte)state.Vector) }, vcpu.Id);
    }

    /// <summary>MSR_KVM_ASYNC_PF_ACK.</summary>
    public static void Acknowledge(ref Vcpu vcpu, ulong value)
    {
        if ((value & 1) == 0)
            return;
        vcpu.Paravirt.Faults.IsTold = false;
        vcpu.Shared.Request(VcpuRequests.Page);
    }
}
