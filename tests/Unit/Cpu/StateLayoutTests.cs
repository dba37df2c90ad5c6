// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;
using NUnit.Framework;

namespace SharpKvm.Tests.Cpu;

/// <summary>Sizes and offsets against those that the C compiler computes from asm/kvm.h and linux/kvm.h.</summary>
public class StateLayoutTests
{
    [Test]
    public void StructuresHaveTheSizesOfTheHeader()
    {
        Assert.Multiple(() =>
        {
            Size<kvm_regs>(144);
            Size<kvm_segment>(24);
            Size<kvm_dtable>(16);
            Size<kvm_sregs>(312);
            Size<kvm_sregs2>(320);
            Size<kvm_fpu>(416);
            Size<kvm_msr_entry>(16);
            Size<kvm_msrs>(8);
            Size<kvm_cpuid_entry2>(40);
            Size<kvm_cpuid2>(8);
            Size<kvm_debug_exit_arch>(32);
            Size<kvm_guest_debug>(72);
            Size<kvm_vcpu_events>(64);
            Size<kvm_debugregs>(128);
            Size<kvm_xcrs>(392);
            Size<kvm_translation>(24);
            Size<kvm_tpr_access_ctl>(40);
            Size<kvm_x86_mce>(64);
        });
    }

    [TestCase(nameof(kvm_vcpu_events), "interrupt_injected", 8)]
    [TestCase(nameof(kvm_vcpu_events), "nmi_injected", 12)]
    [TestCase(nameof(kvm_vcpu_events), "sipi_vector", 16)]
    [TestCase(nameof(kvm_vcpu_events), "flags", 20)]
    [TestCase(nameof(kvm_vcpu_events), "smi_smm", 24)]
    [TestCase(nameof(kvm_vcpu_events), "triple_fault_pending", 28)]
    [TestCase(nameof(kvm_vcpu_events), "exception_has_payload", 55)]
    [TestCase(nameof(kvm_vcpu_events), "exception_payload", 56)]
    [TestCase(nameof(kvm_fpu), "x87", 128)]
    [TestCase(nameof(x87_environment), "ftwx", 4)]
    [TestCase(nameof(x87_environment), "last_opcode", 6)]
    [TestCase(nameof(x87_environment), "last_ip", 8)]
    [TestCase(nameof(kvm_fpu), "xmm", 152)]
    [TestCase(nameof(kvm_fpu), "mxcsr", 408)]
    [TestCase(nameof(kvm_sregs_common), "tr", 144)]
    [TestCase(nameof(kvm_sregs_common), "gdt", 192)]
    [TestCase(nameof(kvm_sregs_common), "cr0", 224)]
    [TestCase(nameof(kvm_sregs_common), "efer", 264)]
    [TestCase(nameof(kvm_sregs_common), "apic_base", 272)]
    [TestCase(nameof(kvm_sregs), "interrupt_bitmap", 280)]
    [TestCase(nameof(kvm_sregs2), "flags", 280)]
    [TestCase(nameof(kvm_sregs2), "pdptrs", 288)]
    [TestCase(nameof(kvm_segment), "type", 14)]
    [TestCase(nameof(kvm_segment), "avl", 21)]
    [TestCase(nameof(kvm_segment), "unusable", 22)]
    [TestCase(nameof(kvm_xcrs), "xcrs", 8)]
    [TestCase(nameof(kvm_x86_mce), "bank", 32)]
    [TestCase(nameof(kvm_cpuid_entry2), "padding", 28)]
    public void FieldsStandWhereTheHeaderHasThem(string structure, string field, int offset)
    {
        Type type = typeof(kvm_regs).Assembly.GetType($"SharpKvm.Abi.{structure}", throwOnError: true)!;
        Assert.That(Marshal.OffsetOf(type, field), Is.EqualTo((nint)offset));
    }

    private static void Size<T>(int bytes) where T : unmanaged => Assert.That(
        System.Runtime.CompilerServices.Unsafe.SizeOf<T>(), Is.EqualTo(bytes), typeof(T).Name);
}
