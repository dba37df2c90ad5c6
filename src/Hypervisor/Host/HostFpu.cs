// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>The guest's FPU state, which the kernel keeps (struct fpu_guest).</summary>
internal readonly partial struct HostVcpu
{
    public const int FxsaveSize = 512;
    public const int XsaveHeaderSize = 64;

    /// <summary>
    /// The FXSAVE image and the XSAVE header behind it (SDM vol. 1, 13.4), 576 bytes. Only while the guest's state
    /// is not in the registers.
    /// </summary>
    public partial Span<byte> LegacyFpu();

    /// <summary>Bytes of the state in the format of KVM_GET_XSAVE2; at least those of struct kvm_xsave, 4096.</summary>
    public partial uint XsaveSize();

    /// <summary>Writes the state in the XSAVE format of the UAPI, <paramref name="size"/> bytes.</summary>
    public partial bool FpuToUser(Hva destination, uint size);

    /// <summary>Takes the state from the XSAVE format of the UAPI: 0, EFAULT, or EINVAL for impossible contents.</summary>
    public partial int FpuFromUser(Hva source);
}
