// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Vmx;

namespace SharpKvm.Tests.Vmx;

/// <summary>Numbers of the manual, written out.</summary>
public class VmcsFieldTests
{
    /// <summary>Bits 13-14 and 10-11 of an encoding (SDM vol. 3, table 25-21).</summary>
    private enum Width { Bits16, Bits64, Bits32, Natural }
    private enum Kind { Control, Information, Guest, Host }

    /// <summary>Appendix B: width, type and index.</summary>
    private static readonly (VmcsField Field, Width Width, Kind Kind, uint Index)[] s_fields =
    [
        (VmcsField.HostSelector, Width.Bits16, Kind.Host, 0),
        (VmcsField.HostPat, Width.Bits64, Kind.Host, 0),
        (VmcsField.HostEfer, Width.Bits64, Kind.Host, 1),
        (VmcsField.HostSysenterCs, Width.Bits32, Kind.Host, 0),
        (VmcsField.HostCr0, Width.Natural, Kind.Host, 0),
        (VmcsField.HostCr4, Width.Natural, Kind.Host, 2),
        (VmcsField.HostSysenterEip, Width.Natural, Kind.Host, 9),
        (VmcsField.Vpid, Width.Bits16, Kind.Control, 0),
        (VmcsField.PostedVector, Width.Bits16, Kind.Control, 1),
        (VmcsField.InterruptStatus, Width.Bits16, Kind.Guest, 8),
        (VmcsField.Selector, Width.Bits16, Kind.Guest, 0),
        (VmcsField.MsrBitmap, Width.Bits64, Kind.Control, 2),
        (VmcsField.PmlIndex, Width.Bits16, Kind.Guest, 9),
        (VmcsField.PmlAddress, Width.Bits64, Kind.Control, 7),
        (VmcsField.TscOffset, Width.Bits64, Kind.Control, 8),
        (VmcsField.VirtualApic, Width.Bits64, Kind.Control, 9),
        (VmcsField.ApicAccess, Width.Bits64, Kind.Control, 10),
        (VmcsField.PostedDescriptor, Width.Bits64, Kind.Control, 11),
        (VmcsField.EptPointer, Width.Bits64, Kind.Control, 13),
        (VmcsField.EoiExits, Width.Bits64, Kind.Control, 14),
        (VmcsField.GuestPhysicalAddress, Width.Bits64, Kind.Information, 0),
        (VmcsField.LinkPointer, Width.Bits64, Kind.Guest, 0),
        (VmcsField.GuestDebugCtl, Width.Bits64, Kind.Guest, 1),
        (VmcsField.GuestPat, Width.Bits64, Kind.Guest, 2),
        (VmcsField.GuestEfer, Width.Bits64, Kind.Guest, 3),
        (VmcsField.GuestPdpte, Width.Bits64, Kind.Guest, 5),
        (VmcsField.PinControls, Width.Bits32, Kind.Control, 0),
        (VmcsField.PrimaryControls, Width.Bits32, Kind.Control, 1),
        (VmcsField.ExceptionBitmap, Width.Bits32, Kind.Control, 2),
        (VmcsField.PageFaultMask, Width.Bits32, Kind.Control, 3),
        (VmcsField.PageFaultMatch, Width.Bits32, Kind.Control, 4),
        (VmcsField.Cr3TargetCount, Width.Bits32, Kind.Control, 5),
        (VmcsField.ExitControls, Width.Bits32, Kind.Control, 6),
        (VmcsField.ExitStoreCount, Width.Bits32, Kind.Control, 7),
        (VmcsField.ExitLoadCount, Width.Bits32, Kind.Control, 8),
        (VmcsField.EntryControls, Width.Bits32, Kind.Control, 9),
        (VmcsField.EntryLoadCount, Width.Bits32, Kind.Control, 10),
        (VmcsField.EntryInterruption, Width.Bits32, Kind.Control, 11),
        (VmcsField.EntryErrorCode, Width.Bits32, Kind.Control, 12),
        (VmcsField.EntryInstructionLength, Width.Bits32, Kind.Control, 13),
        (VmcsField.TprThreshold, Width.Bits32, Kind.Control, 14),
        (VmcsField.SecondaryControls, Width.Bits32, Kind.Control, 15),
        (VmcsField.InstructionError, Width.Bits32, Kind.Information, 0),
        (VmcsField.ExitReason, Width.Bits32, Kind.Information, 1),
        (VmcsField.ExitInterruption, Width.Bits32, Kind.Information, 2),
        (VmcsField.ExitErrorCode, Width.Bits32, Kind.Information, 3),
        (VmcsField.InterruptedEvent, Width.Bits32, Kind.Information, 4),
        (VmcsField.InterruptedErrorCode, Width.Bits32, Kind.Information, 5),
        (VmcsField.InstructionLength, Width.Bits32, Kind.Information, 6),
        (VmcsField.InstructionInformation, Width.Bits32, Kind.Information, 7),
        (VmcsField.Limit, Width.Bits32, Kind.Guest, 0),
        (VmcsField.GdtrLimit, Width.Bits32, Kind.Guest, 8),
        (VmcsField.IdtrLimit, Width.Bits32, Kind.Guest, 9),
        (VmcsField.AccessRights, Width.Bits32, Kind.Guest, 10),
        (VmcsField.Interruptibility, Width.Bits32, Kind.Guest, 18),
        (VmcsField.PreemptionTimer, Width.Bits32, Kind.Guest, 23),
        (VmcsField.Activity, Width.Bits32, Kind.Guest, 19),
        (VmcsField.SysenterCs, Width.Bits32, Kind.Guest, 21),
        (VmcsField.Cr0Mask, Width.Natural, Kind.Control, 0),
        (VmcsField.Cr4Mask, Width.Natural, Kind.Control, 1),
        (VmcsField.Cr0Shadow, Width.Natural, Kind.Control, 2),
        (VmcsField.Cr4Shadow, Width.Natural, Kind.Control, 3),
        (VmcsField.Qualification, Width.Natural, Kind.Information, 0),
        (VmcsField.Cr0, Width.Natural, Kind.Guest, 0),
        (VmcsField.Cr3, Width.Natural, Kind.Guest, 1),
        (VmcsField.Cr4, Width.Natural, Kind.Guest, 2),
        (VmcsField.Base, Width.Natural, Kind.Guest, 3),
        (VmcsField.GdtrBase, Width.Natural, Kind.Guest, 11),
        (VmcsField.IdtrBase, Width.Natural, Kind.Guest, 12),
        (VmcsField.Dr7, Width.Natural, Kind.Guest, 13),
        (VmcsField.Rsp, Width.Natural, Kind.Guest, 14),
        (VmcsField.Rip, Width.Natural, Kind.Guest, 15),
        (VmcsField.Rflags, Width.Natural, Kind.Guest, 16),
        (VmcsField.PendingDebug, Width.Natural, Kind.Guest, 17),
        (VmcsField.SysenterEsp, Width.Natural, Kind.Guest, 18),
        (VmcsField.SysenterEip, Width.Natural, Kind.Guest, 19),
    ];

    [Test]
    public void EncodingsAreThoseOfTheManual()
    {
        Assert.That(s_fields.Select(row => row.Field), Is.EquivalentTo(Enum.GetValues<VmcsField>()));
        Assert.Multiple(() =>
        {
            foreach ((VmcsField field, Width width, Kind kind, uint index) in s_fields)
                Assert.That((uint)field, Is.EqualTo((uint)width << 13 | (uint)kind << 10 | index << 1), $"{field}");
        });
    }

    [Test]
    public void SegmentsFollowEachOther()
    {
        Assert.That((uint)Vmcs.Of(VmcsField.Selector, SegmentName.Tr), Is.EqualTo(0x80e));
        Assert.That((uint)Vmcs.Of(VmcsField.Limit, SegmentName.Ldtr), Is.EqualTo(0x480c));
        Assert.That((uint)Vmcs.Of(VmcsField.AccessRights, SegmentName.Ss), Is.EqualTo(0x4818));
        Assert.That((uint)Vmcs.Of(VmcsField.Base, SegmentName.Fs), Is.EqualTo(0x680e));
    }

    /// <summary>Appendix C.</summary>
    [Test]
    public void ExitReasonsAreThoseOfTheManual()
    {
        uint[] ours =
        [
            ExitReason.Exception, ExitReason.Interrupt, ExitReason.TripleFault, ExitReason.Init, ExitReason.StartUp,
            ExitReason.InterruptWindow, ExitReason.NmiWindow, ExitReason.TaskSwitch, ExitReason.Cpuid, ExitReason.Hlt,
            ExitReason.Invd, ExitReason.Rdpmc, ExitReason.Vmcall, ExitReason.Vmclear, ExitReason.Vmxon,
            ExitReason.ControlRegister, ExitReason.DebugRegister, ExitReason.Port, ExitReason.Rdmsr, ExitReason.Wrmsr,
            ExitReason.Mwait, ExitReason.Monitor, ExitReason.TprBelowThreshold, ExitReason.EptViolation,
            ExitReason.Invept, ExitReason.PreemptionTimer, ExitReason.Invvpid, ExitReason.Wbinvd, ExitReason.Xsetbv,
            ExitReason.PmlFull, ExitReason.Invlpg, ExitReason.Invpcid,
        ];
        Assert.That(ours, Is.EqualTo(new uint[]
        {
            0, 1, 2, 3, 4, 7, 8, 9, 10, 12, 13, 15, 18, 19, 27, 28, 29, 30, 31, 32, 36, 39, 43, 48, 50, 52, 53, 54, 55,
            62, 14, 58,
        }));
    }
}
