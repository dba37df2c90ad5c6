// SPDX-License-Identifier: GPL-2.0-only
namespace Kernel;

/// <summary>Single instructions. The object pass puts each in place of its call; no function is behind it.</summary>
public static unsafe class X86
{
    /// <summary>RDMSR. A fault in it is a trap of this line.</summary>
    [KernelImport("cs_x86_rdmsr")]
    public static extern ulong Rdmsr(uint index);

    /// <summary>WRMSR. A fault in it is a trap of this line.</summary>
    [KernelImport("cs_x86_wrmsr")]
    public static extern void Wrmsr(uint index, ulong value);

    /// <summary>IN AL, DX.</summary>
    [KernelImport("cs_x86_in8")]
    public static extern byte In8(ushort port);

    /// <summary>IN AX, DX.</summary>
    [KernelImport("cs_x86_in16")]
    public static extern ushort In16(ushort port);

    /// <summary>IN EAX, DX.</summary>
    [KernelImport("cs_x86_in32")]
    public static extern uint In32(ushort port);

    /// <summary>OUT DX, AL.</summary>
    [KernelImport("cs_x86_out8")]
    public static extern void Out8(ushort port, byte value);

    /// <summary>OUT DX, AX.</summary>
    [KernelImport("cs_x86_out16")]
    public static extern void Out16(ushort port, ushort value);

    /// <summary>OUT DX, EAX.</summary>
    [KernelImport("cs_x86_out32")]
    public static extern void Out32(ushort port, uint value);

    /// <summary>MOV from CR0.</summary>
    [KernelImport("cs_x86_read_cr0")]
    public static extern ulong ReadCr0();

    /// <summary>MOV from CR2.</summary>
    [KernelImport("cs_x86_read_cr2")]
    public static extern ulong ReadCr2();

    /// <summary>MOV from CR3.</summary>
    [KernelImport("cs_x86_read_cr3")]
    public static extern ulong ReadCr3();

    /// <summary>MOV from CR4.</summary>
    [KernelImport("cs_x86_read_cr4")]
    public static extern ulong ReadCr4();

    /// <summary>MOV from CR8.</summary>
    [KernelImport("cs_x86_read_cr8")]
    public static extern ulong ReadCr8();

    /// <summary>MOV to CR0.</summary>
    [KernelImport("cs_x86_write_cr0")]
    public static extern void WriteCr0(ulong value);

    /// <summary>MOV to CR2.</summary>
    [KernelImport("cs_x86_write_cr2")]
    public static extern void WriteCr2(ulong value);

    /// <summary>MOV to CR3.</summary>
    [KernelImport("cs_x86_write_cr3")]
    public static extern void WriteCr3(ulong value);

    /// <summary>MOV to CR4.</summary>
    [KernelImport("cs_x86_write_cr4")]
    public static extern void WriteCr4(ulong value);

    /// <summary>MOV to CR8.</summary>
    [KernelImport("cs_x86_write_cr8")]
    public static extern void WriteCr8(ulong value);

    /// <summary>MOV from DR0.</summary>
    [KernelImport("cs_x86_read_dr0")]
    public static extern ulong ReadDr0();

    /// <summary>MOV from DR1.</summary>
    [KernelImport("cs_x86_read_dr1")]
    public static extern ulong ReadDr1();

    /// <summary>MOV from DR2.</summary>
    [KernelImport("cs_x86_read_dr2")]
    public static extern ulong ReadDr2();

    /// <summary>MOV from DR3.</summary>
    [KernelImport("cs_x86_read_dr3")]
    public static extern ulong ReadDr3();

    /// <summary>MOV from DR6.</summary>
    [KernelImport("cs_x86_read_dr6")]
    public static extern ulong ReadDr6();

    /// <summary>MOV from DR7.</summary>
    [KernelImport("cs_x86_read_dr7")]
    public static extern ulong ReadDr7();

    /// <summary>MOV to DR0.</summary>
    [KernelImport("cs_x86_write_dr0")]
    public static extern void WriteDr0(ulong value);

    /// <summary>MOV to DR1.</summary>
    [KernelImport("cs_x86_write_dr1")]
    public static extern void WriteDr1(ulong value);

    /// <summary>MOV to DR2.</summary>
    [KernelImport("cs_x86_write_dr2")]
    public static extern void WriteDr2(ulong value);

    /// <summary>MOV to DR3.</summary>
    [KernelImport("cs_x86_write_dr3")]
    public static extern void WriteDr3(ulong value);

    /// <summary>MOV to DR6.</summary>
    [KernelImport("cs_x86_write_dr6")]
    public static extern void WriteDr6(ulong value);

    /// <summary>MOV to DR7.</summary>
    [KernelImport("cs_x86_write_dr7")]
    public static extern void WriteDr7(ulong value);

    /// <summary>PUSHFQ; POP.</summary>
    [KernelImport("cs_x86_read_rflags")]
    public static extern ulong ReadRflags();

    /// <summary>CLI.</summary>
    [KernelImport("cs_x86_cli")]
    public static extern void Cli();

    /// <summary>STI.</summary>
    [KernelImport("cs_x86_sti")]
    public static extern void Sti();

    /// <summary>STAC: allow access to user pages.</summary>
    [KernelImport("cs_x86_stac")]
    public static extern void Stac();

    /// <summary>CLAC: forbid access to user pages.</summary>
    [KernelImport("cs_x86_clac")]
    public static extern void Clac();

    /// <summary>CLGI (SVM).</summary>
    [KernelImport("cs_x86_clgi")]
    public static extern void Clgi();

    /// <summary>STGI (SVM).</summary>
    [KernelImport("cs_x86_stgi")]
    public static extern void Stgi();

    /// <summary>VMLOAD (SVM) of the VMCB at this physical address.</summary>
    [KernelImport("cs_x86_vmload")]
    public static extern void Vmload(ulong vmcb);

    /// <summary>VMSAVE (SVM) to the VMCB at this physical address.</summary>
    [KernelImport("cs_x86_vmsave")]
    public static extern void Vmsave(ulong vmcb);

    /// <summary>INVLPGA (SVM).</summary>
    [KernelImport("cs_x86_invlpga")]
    public static extern void Invlpga(ulong address, uint asid);

    /// <summary>INVLPG.</summary>
    [KernelImport("cs_x86_invlpg")]
    public static extern void Invlpg(ulong address);

    /// <summary>WBINVD.</summary>
    [KernelImport("cs_x86_wbinvd")]
    public static extern void Wbinvd();

    /// <summary>RDTSC.</summary>
    [KernelImport("cs_x86_rdtsc")]
    public static extern ulong Rdtsc();

    /// <summary>RDTSCP; TSC_AUX goes to <paramref name="aux"/>.</summary>
    [KernelImport("cs_x86_rdtscp")]
    public static extern ulong Rdtscp(uint* aux);

    /// <summary>CPUID; EAX, EBX, ECX, EDX go to <paramref name="registers"/>.</summary>
    [KernelImport("cs_x86_cpuid")]
    public static extern void Cpuid(uint leaf, uint subleaf, uint* registers);

    /// <summary>XGETBV.</summary>
    [KernelImport("cs_x86_xgetbv")]
    public static extern ulong Xgetbv(uint index);

    /// <summary>XSETBV.</summary>
    [KernelImport("cs_x86_xsetbv")]
    public static extern void Xsetbv(uint index, ulong value);

    /// <summary>PAUSE.</summary>
    [KernelImport("cs_x86_pause")]
    public static extern void Pause();

    /// <summary>MFENCE.</summary>
    [KernelImport("cs_x86_mfence")]
    public static extern void Mfence();

    /// <summary>LFENCE.</summary>
    [KernelImport("cs_x86_lfence")]
    public static extern void Lfence();

    /// <summary>SFENCE.</summary>
    [KernelImport("cs_x86_sfence")]
    public static extern void Sfence();

    /// <summary>VMREAD (VMX); 0 when the instruction fails.</summary>
    [KernelImport("cs_x86_vmread")]
    public static extern ulong Vmread(ulong field);

    /// <summary>VMWRITE (VMX); false when the instruction fails.</summary>
    [KernelImport("cs_x86_vmwrite")]
    public static extern bool Vmwrite(ulong field, ulong value);

    /// <summary>VMCLEAR (VMX) of the region whose physical address is stored here; false when it fails.</summary>
    [KernelImport("cs_x86_vmclear")]
    public static extern bool Vmclear(ulong* address);

    /// <summary>VMPTRLD (VMX) of the region whose physical address is stored here; false when it fails.</summary>
    [KernelImport("cs_x86_vmptrld")]
    public static extern bool Vmptrld(ulong* address);

    /// <summary>VMXON with the region whose physical address is stored here; false when it fails.</summary>
    [KernelImport("cs_x86_vmxon")]
    public static extern bool Vmxon(ulong* address);

    /// <summary>VMXOFF; false when it fails.</summary>
    [KernelImport("cs_x86_vmxoff")]
    public static extern bool Vmxoff();

    /// <summary>INVEPT (VMX); false when it fails.</summary>
    [KernelImport("cs_x86_invept")]
    public static extern bool Invept(ulong type, void* descriptor);

    /// <summary>INVVPID (VMX); false when it fails.</summary>
    [KernelImport("cs_x86_invvpid")]
    public static extern bool Invvpid(ulong type, void* descriptor);

    /// <summary>The index, forced to 0 when it is not below the size, speculatively too (Linux array_index_nospec). The
    /// check itself stays with the caller.</summary>
    [KernelImport("cs_x86_array_index_nospec")]
    public static extern ulong ArrayIndexNospec(ulong index, ulong size);

    /// <summary>The high 64 bits of the unsigned product.</summary>
    [KernelImport("cs_x86_multiply_high")]
    public static extern ulong MultiplyHigh(ulong left, ulong right);

    /// <summary>BSF: position of the lowest set bit; the value must not be 0.</summary>
    [KernelImport("cs_x86_bit_scan_forward32")]
    public static extern uint BitScanForward(uint value);

    /// <summary>BSF: position of the lowest set bit; the value must not be 0.</summary>
    [KernelImport("cs_x86_bit_scan_forward64")]
    public static extern ulong BitScanForward(ulong value);

    /// <summary>BSR: position of the highest set bit; the value must not be 0.</summary>
    [KernelImport("cs_x86_bit_scan_reverse32")]
    public static extern uint BitScanReverse(uint value);

    /// <summary>BSR: position of the highest set bit; the value must not be 0.</summary>
    [KernelImport("cs_x86_bit_scan_reverse64")]
    public static extern ulong BitScanReverse(ulong value);

    /// <summary>LOCK BTS of bit 0 to 63 of a word; returns the old bit.</summary>
    [KernelImport("cs_x86_lock_bit_set")]
    public static extern bool LockBitSet(ulong* word, uint bit);

    /// <summary>LOCK BTR of bit 0 to 63 of a word; returns the old bit.</summary>
    [KernelImport("cs_x86_lock_bit_reset")]
    public static extern bool LockBitReset(ulong* word, uint bit);

    /// <summary>LOCK BTC of bit 0 to 63 of a word; returns the old bit.</summary>
    [KernelImport("cs_x86_lock_bit_complement")]
    public static extern bool LockBitComplement(ulong* word, uint bit);

    /// <summary>LOCK OR.</summary>
    [KernelImport("cs_x86_lock_or")]
    public static extern void LockOr(ulong* word, ulong mask);

    /// <summary>LOCK AND.</summary>
    [KernelImport("cs_x86_lock_and")]
    public static extern void LockAnd(ulong* word, ulong mask);
}
