// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using Delivery = SharpKvm.Cpu.EventDelivery<SharpKvm.Tests.Cpu.FakeVendor>;
using static SharpKvm.Abi.Ioctl;
using Queue = SharpKvm.Cpu.Exceptions<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Cpu;

public class EventTests
{
    private TestVcpu _test = null!;

    [SetUp]
    public void SetUp()
    {
        _test = new TestVcpu();
        _test.Block.Cr0 = Cr0.Pe;
    }

    [TearDown]
    public void TearDown() => _test.Dispose();

    private ref EventState Events => ref _test.Vcpu.Events;

    private static bool IsContributory(int vector) => vector is 0 or 10 or 11 or 12 or 13 or 21;

    /// <summary>All pairs of exceptions against table 6-5 of SDM vol. 3, 6.15.</summary>
    [Test]
    public void ASecondExceptionDoublesAsTheManualSays([Values] bool begun)
    {
        for (int first = 0; first < 32; first++)
        {
            for (int second = 0; second < 32; second++)
            {
                Events = default;
                Queue.Queue(ref _test.Vcpu, new Vector((byte)first), 3);
                if (begun)
                    Assert.That(Queue.Take(ref _test.Vcpu).Valid, Is.True);
                Queue.Queue(ref _test.Vcpu, new Vector((byte)second), 5);

                bool pushes = second is 8 or 10 or 11 or 12 or 13 or 14 or 17 or 21;
                bool secondSerious = IsContributory(second) || second == 14;
                bool triple = first == 8 && secondSerious;
                bool doubled = IsContributory(first) && IsContributory(second) || first == 14 && secondSerious;
                Assert.That(Events.TripleFault, Is.EqualTo(triple), $"{first}, {second}");
                Assert.That(Events.HasException, Is.EqualTo(!triple), $"{first}, {second}");
                if (triple)
                    continue;
                EventInjection taken = Queue.Take(ref _test.Vcpu);
                Assert.That(taken.Valid, Is.True);
                Assert.That((int)taken.Vector, Is.EqualTo(doubled ? 8 : second), $"{first}, {second}");
                Assert.That((taken.HasErrorCode, taken.HasErrorCode ? taken.ErrorCode : 0),
                    Is.EqualTo(doubled ? (true, 0u) : pushes ? (true, 5u) : (false, 0u)), $"{first}, {second}");
            }
        }
    }

    [Test]
    public void RealModeHasNoErrorCodes()
    {
        _test.Block.Cr0 = 0;
        Queue.Queue(ref _test.Vcpu, Vector.GeneralProtection, 0x10);
        EventInjection taken = Queue.Take(ref _test.Vcpu);
        Assert.That(taken.Valid, Is.True);
        Assert.That(taken.HasErrorCode, Is.False);
    }

    [Test]
    public void APageFaultWritesCr2WhenItIsDelivered()
    {
        Queue.Queue(ref _test.Vcpu, Vector.PageFault, 2, 0xdead000);
        Assert.That(_test.Block.Cr2, Is.Zero);
        EventInjection taken = Queue.Take(ref _test.Vcpu);
        Assert.That(taken.Valid, Is.True);
        Assert.That((_test.Block.Cr2, taken.Vector, taken.ErrorCode), Is.EqualTo((0xdead000ul, (byte)14, 2u)));
        Assert.That(_test.Vcpu.Registers.Rflags & Rflags.Rf, Is.Not.Zero, "RF is pushed by faults");
    }

    [Test]
    public void ADebugExceptionWritesDr6AndClearsGd()
    {
        _test.Vcpu.Debug.Dr6 = 0xf;
        Debugging<FakeVendor>.SetDr7(ref _test.Vcpu, DebugBits.Dr7Gd | 1);
        Queue.Queue(ref _test.Vcpu, Vector.Debug, payload: 1 << 14);
        Assert.That(Queue.Take(ref _test.Vcpu).Valid, Is.True);
        Assert.That((_test.Vcpu.Debug.Dr6, _test.Block.Dr7), Is.EqualTo((0xffff4ff0ul, 0x401ul)));
        Assert.That(_test.Vcpu.Registers.Rflags & Rflags.Rf, Is.Zero);
    }

    [Test]
    public void AnInterruptedDeliveryIsRepeated()
    {
        Assert.That(Queue.Take(ref _test.Vcpu).Valid, Is.False);
        Delivery.AfterExit(ref Events, EventInjection.Of(Vector.PageFault.Value, 7));
        Assert.That(Events.AnyInjected, Is.True);
        EventInjection taken = Queue.Take(ref _test.Vcpu);
        Assert.That(taken.Valid, Is.True);
        Assert.That((taken.Vector, taken.ErrorCode), Is.EqualTo(((byte)14, 7u)));
        Events.ClearInjected();
        Assert.That(Queue.Take(ref _test.Vcpu).Valid, Is.False);
        Delivery.AfterExit(
            ref Events, EventInjection.Of(EventInjection.EventType.Exception, Vector.Breakpoint.Value));
        Assert.That(Events.AnyInjected, Is.False, "the instruction runs again");
        Delivery.AfterExit(ref Events, EventInjection.Of(EventInjection.EventType.SoftInterrupt, 0x80));
        Assert.That(Events.AnyInjected, Is.False, "so does INT n");
        Delivery.AfterExit(ref Events, EventInjection.Of(EventInjection.EventType.Nmi, Vector.Nmi.Value));
        Assert.That((Events.Nmi.Injected, Events.AnyInjected), Is.EqualTo((true, true)));
    }

    [Test]
    public void AnInterruptNeedsAnOpenWindow()
    {
        Assert.That(Queue.CanAcceptInterrupt(ref _test.Vcpu), Is.False, "IF");
        _test.Vcpu.Registers.Rflags |= Rflags.If;
        Assert.That(Queue.CanAcceptInterrupt(ref _test.Vcpu), Is.True);
        _test.Block.InterruptShadow = 1;
        Assert.That(Queue.CanAcceptInterrupt(ref _test.Vcpu), Is.False, "shadow");
        _test.Block.InterruptShadow = 0;
        Queue.Queue(ref _test.Vcpu, Vector.InvalidOpcode);
        Assert.That(Queue.CanAcceptInterrupt(ref _test.Vcpu), Is.False, "exception");
        Events = default;
        Events.ReinjectInterrupt(new Vector(32));
        Assert.That(Queue.CanAcceptInterrupt(ref _test.Vcpu), Is.False, "another one");
    }

    [Test]
    public void AnNmiNeedsToBeUnmasked()
    {
        Assert.That(Queue.CanTakeNmi(ref _test.Vcpu), Is.False);
        _test.Call(KVM_NMI);
        Assert.That(Queue.CanTakeNmi(ref _test.Vcpu), Is.True);
        _test.Block.NmiMasked = true;
        Assert.That(Queue.CanTakeNmi(ref _test.Vcpu), Is.False);
    }

    private static readonly Gen<kvm_vcpu_events> s_events =
        from bits in Gen.Bool.Array[10]
        from vector in Gen.Byte[3, 31]
        from error in Gen.UInt
        from payload in Gen.ULong
        from interrupt in Gen.Byte
        from shadow in Gen.Byte[0, 3]
        select new kvm_vcpu_events
        {
            exception_injected = Flag(bits[0] && !Soft(vector)),
            exception_pending = Flag(bits[1] && !bits[0] && !Soft(vector)),
            exception_nr = vector, exception_has_error_code = Flag(bits[2]), exception_error_code = error,
            exception_has_payload = Flag(bits[1] && !bits[0] && !Soft(vector)),
            exception_payload = payload,
            interrupt_injected = Flag(bits[3]), interrupt_nr = interrupt, interrupt_shadow = shadow,
            nmi_injected = Flag(bits[4]), nmi_pending = Flag(bits[5]), nmi_masked = Flag(bits[6]),
            triple_fault_pending = Flag(bits[7]),
            flags = kvm_vcpu_events.KVM_VCPUEVENT_VALID_NMI_PENDING | kvm_vcpu_events.KVM_VCPUEVENT_VALID_SHADOW
                | kvm_vcpu_events.KVM_VCPUEVENT_VALID_SMM | kvm_vcpu_events.KVM_VCPUEVENT_VALID_PAYLOAD
                | kvm_vcpu_events.KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
        };

    private static bool Soft(byte vector) => vector is 3 or 4;
    private static byte Flag(bool value) => value ? (byte)1 : (byte)0;

    [Test]
    public void AllEventsComeBack()
    {
        _test.Machine.Vm.Cpu.ExceptionPayload = true;
        _test.Machine.Vm.Cpu.TripleFaultEvent = true;
        s_events.Sample(events =>
        {
            Assert.That(_test.Set(KVM_SET_VCPU_EVENTS, events), Is.Zero);
            StateIoctlsTests.AssertSame(_test.Get<kvm_vcpu_events>(KVM_GET_VCPU_EVENTS), events);
        }, iter: 500, threads: 1);
    }

    [Test]
    public void WithoutPayloadsAPendingExceptionCountsAsInjected()
    {
        Queue.Queue(ref _test.Vcpu, Vector.PageFault, 4, 0x5000);
        kvm_vcpu_events events = _test.Get<kvm_vcpu_events>(KVM_GET_VCPU_EVENTS);
        Assert.That((events.exception_injected, events.exception_nr, events.exception_error_code,
            events.exception_has_payload),
            Is.EqualTo(((byte)1, (byte)14, 4u, (byte)0)));
        Assert.That(_test.Block.Cr2, Is.EqualTo(0x5000));
        Assert.That(_test.Set(KVM_SET_VCPU_EVENTS, events), Is.Zero);
        Assert.That((Events.Exception.Injected, Events.Exception.Pending), Is.EqualTo((true, false)));
    }

    [Test]
    public void SoftExceptionsAreNotReported()
    {
        Queue.Queue(ref _test.Vcpu, Vector.Breakpoint);
        Assert.That(_test.Get<kvm_vcpu_events>(KVM_GET_VCPU_EVENTS).exception_injected, Is.Zero);
    }

    private static IEnumerable<TestCaseData> Bad()
    {
        yield return new TestCaseData(new kvm_vcpu_events { flags = 0x40 }).SetArgDisplayNames("unknown flag");
        yield return new TestCaseData(new kvm_vcpu_events { flags = 0x10 }).SetArgDisplayNames("payload not enabled");
        yield return new TestCaseData(new kvm_vcpu_events { flags = 0x20 })
            .SetArgDisplayNames("triple fault not enabled");
        yield return new TestCaseData(new kvm_vcpu_events { exception_injected = 1, exception_nr = 32 })
            .SetArgDisplayNames("vector 32");
        yield return new TestCaseData(new kvm_vcpu_events { exception_injected = 1, exception_nr = 2 })
            .SetArgDisplayNames("NMI as an exception");
        yield return new TestCaseData(new kvm_vcpu_events { flags = 8, smi_smm = 1 })
            .SetArgDisplayNames("SMM");
        yield return new TestCaseData(new kvm_vcpu_events { flags = 8, smi_pending = 1 })
            .SetArgDisplayNames("SMI");
    }

    [TestCaseSource(nameof(Bad))]
    public void ImpossibleEventsAreRefusedAndChangeNothing(object events)
    {
        _test.Call(KVM_NMI);
        Assert.That(_test.Set(KVM_SET_VCPU_EVENTS, (kvm_vcpu_events)events), Is.EqualTo(Errno.EINVAL));
        Assert.That(Events.Nmi.Pending, Is.EqualTo(1));
    }

    [Test]
    public void FieldsWithoutTheirFlagStay()
    {
        _test.Call(KVM_NMI);
        _test.Block.InterruptShadow = 2;
        Assert.That(_test.Set(KVM_SET_VCPU_EVENTS, new kvm_vcpu_events
        {
            exception_pending = 1, exception_nr = 14, sipi_vector = 9, smi_smm = 1,
        }), Is.Zero);
        Assert.That((Events.Nmi.Pending, _test.Block.InterruptShadow, Events.HasException),
            Is.EqualTo(((byte)1, 2, false)));
    }
}
