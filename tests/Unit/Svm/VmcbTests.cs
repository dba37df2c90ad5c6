// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;

namespace SharpKvm.Tests.Svm;

/// <summary>The control block against the tables of APM vol. 2, appendices B and C.</summary>
public class VmcbTests
{
    [TestCase(nameof(Vmcb.InterceptCr), 0x000)]
    [TestCase(nameof(Vmcb.InterceptDr), 0x004)]
    [TestCase(nameof(Vmcb.InterceptExceptions), 0x008)]
    [TestCase(nameof(Vmcb.Intercept3), 0x00c)]
    [TestCase(nameof(Vmcb.Intercept4), 0x010)]
    [TestCase(nameof(Vmcb.Intercept5), 0x014)]
    [TestCase(nameof(Vmcb.IopmBase), 0x040)]
    [TestCase(nameof(Vmcb.MsrpmBase), 0x048)]
    [TestCase(nameof(Vmcb.TscOffset), 0x050)]
    [TestCase(nameof(Vmcb.Asid), 0x058)]
    [TestCase(nameof(Vmcb.TlbControl), 0x05c)]
    [TestCase(nameof(Vmcb.VirtualInterrupt), 0x060)]
    [TestCase(nameof(Vmcb.VirtualVector), 0x064)]
    [TestCase(nameof(Vmcb.InterruptShadow), 0x068)]
    [TestCase(nameof(Vmcb.ExitCode), 0x070)]
    [TestCase(nameof(Vmcb.ExitInfo1), 0x078)]
    [TestCase(nameof(Vmcb.ExitInfo2), 0x080)]
    [TestCase(nameof(Vmcb.ExitInterrupt), 0x088)]
    [TestCase(nameof(Vmcb.NestedControl), 0x090)]
    [TestCase(nameof(Vmcb.Inject), 0x0a8)]
    [TestCase(nameof(Vmcb.NestedCr3), 0x0b0)]
    [TestCase(nameof(Vmcb.NextRip), 0x0c8)]
    [TestCase(nameof(Vmcb.Segments), 0x400)]
    [TestCase(nameof(Vmcb.Cpl), 0x4cb)]
    [TestCase(nameof(Vmcb.Efer), 0x4d0)]
    [TestCase(nameof(Vmcb.Cr4), 0x548)]
    [TestCase(nameof(Vmcb.Cr3), 0x550)]
    [TestCase(nameof(Vmcb.Cr0), 0x558)]
    [TestCase(nameof(Vmcb.Dr7), 0x560)]
    [TestCase(nameof(Vmcb.Dr6), 0x568)]
    [TestCase(nameof(Vmcb.Rflags), 0x570)]
    [TestCase(nameof(Vmcb.Rip), 0x578)]
    [TestCase(nameof(Vmcb.Rsp), 0x5d8)]
    [TestCase(nameof(Vmcb.Rax), 0x5f8)]
    [TestCase(nameof(Vmcb.Star), 0x600)]
    [TestCase(nameof(Vmcb.Lstar), 0x608)]
    [TestCase(nameof(Vmcb.Cstar), 0x610)]
    [TestCase(nameof(Vmcb.Sfmask), 0x618)]
    [TestCase(nameof(Vmcb.KernelGsBase), 0x620)]
    [TestCase(nameof(Vmcb.SysenterCs), 0x628)]
    [TestCase(nameof(Vmcb.SysenterEsp), 0x630)]
    [TestCase(nameof(Vmcb.SysenterEip), 0x638)]
    [TestCase(nameof(Vmcb.Cr2), 0x640)]
    [TestCase(nameof(Vmcb.GuestPat), 0x668)]
    public void AFieldStandsWhereTheManualHasIt(string field, int offset) =>
        Assert.That(Marshal.OffsetOf<Vmcb>(field), Is.EqualTo((nint)offset));

    [Test]
    public void EveryFieldIsInTheTableAbove()
    {
        IEnumerable<string> tested = typeof(VmcbTests).GetMethod(nameof(AFieldStandsWhereTheManualHasIt))!
            .GetCustomAttributes(typeof(TestCaseAttribute), false).Cast<TestCaseAttribute>()
            .Select(attribute => (string)attribute.Arguments[0]!);
        Assert.That(typeof(Vmcb).GetFields().Select(field => field.Name), Is.EquivalentTo(tested));
    }

    [Test]
    public void TheControlBlockIsAPage() => Assert.That(Unsafe.SizeOf<Vmcb>(), Is.EqualTo(4096));

    [TestCase(nameof(SegmentName.Es), 0x400)]
    [TestCase(nameof(SegmentName.Cs), 0x410)]
    [TestCase(nameof(SegmentName.Ss), 0x420)]
    [TestCase(nameof(SegmentName.Ds), 0x430)]
    [TestCase(nameof(SegmentName.Fs), 0x440)]
    [TestCase(nameof(SegmentName.Gs), 0x450)]
    [TestCase(nameof(SegmentName.Ldtr), 0x470)]
    [TestCase(nameof(SegmentName.Tr), 0x490)]
    public void ASegmentIsStoredAsSelectorAttributesLimitBase(string name, int offset)
    {
        using SvmGuest guest = new();
        SvmVendor.SetSegment(ref guest.Vcpu, Enum.Parse<SegmentName>(name),
            new() { Selector = 0x1234, Attributes = 0xabc, Limit = 0x89abcdef, Base = 0x11223344_55667788 });
        Span<byte> stored = SharpKvm.Host.KernelPages.Bytes(guest.Vcpu.Svm.VmcbPage).Slice(offset, 16);
        Assert.That(Convert.ToHexStringLower(stored), Is.EqualTo("3412bc0aefcdab898877665544332211"));
    }

    [TestCase(nameof(SegmentName.Gdtr), 0x460)]
    [TestCase(nameof(SegmentName.Idtr), 0x480)]
    public void ATableIsStoredAsASegment(string name, int offset)
    {
        using SvmGuest guest = new();
        SvmVendor.SetTable(ref guest.Vcpu, Enum.Parse<SegmentName>(name),
            new() { Limit = 0xabcd, Base = 0x11223344_55667788 });
        Span<byte> stored = SharpKvm.Host.KernelPages.Bytes(guest.Vcpu.Svm.VmcbPage).Slice(offset, 16);
        Assert.That(Convert.ToHexStringLower(stored), Is.EqualTo("00000000cdab00008877665544332211"));
    }

    [Test]
    public void InterceptsAndExitCodesAgree()
    {
        Assert.Multiple(() =>
        {
            Check(Enum.GetValues<Intercept3>().Select(bit => (bit.ToString(), (uint)bit)), 0x60);
            Check(Enum.GetValues<Intercept4>().Select(bit => (bit.ToString(), (uint)bit)), 0x80);
        });

        static void Check(IEnumerable<(string Name, uint Bit)> intercepts, ulong firstCode)
        {
            foreach ((string name, uint bit) in intercepts)
            {
                ulong code = firstCode + (ulong)System.Numerics.BitOperations.TrailingZeroCount(bit);
                Assert.That(typeof(ExitCode).GetField(name)?.GetRawConstantValue(), Is.EqualTo(code), name);
            }
        }
    }

    [Test]
    public void AnInjectedEventIsPackedAsTheManualHasIt()
    {
        Assert.That(EventInjection.Of(EventInjection.EventType.Interrupt, 0x31).Raw, Is.EqualTo(0x8000_0031));
        Assert.That(EventInjection.Of(14, 0x15).Raw, Is.EqualTo(0x15_8000_0b0e));
        EventInjection read = new(0x15_8000_0b0e);
        Assert.That((read.Valid, read.Vector, read.Type, read.HasErrorCode, read.ErrorCode),
            Is.EqualTo((true, (byte)14, EventInjection.EventType.Exception, true, 0x15u)));
    }
}
