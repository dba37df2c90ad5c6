// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>A guest that writes one word to each of many pages, or compares it.</summary>
sealed class PageGuest : IDisposable
{
    public const ulong Page = 4096;

    public PageGuest(Action<Vm>? prepare = null)
    {
        Guest = new Guest(GuestMode.Long, vm => prepare?.Invoke(vm));
        Guest.Load(GuestLayout.Code, code =>
        {
            Label compare = code.CreateLabel(), next = code.CreateLabel(), good = code.CreateLabel();
            code.test(rsi, rsi);
            code.jnz(compare);
            code.mov(__qword_ptr[rbx], rdi);
            code.jmp(next);
            code.Label(ref compare);
            code.cmp(__qword_ptr[rbx], rdi);
            code.je(next);
            code.hlt();
            code.Label(ref next);
            code.add(rbx, (int)Page);
            code.dec(rcx);
            code.jz(good);
            code.test(rsi, rsi);
            code.jnz(compare);
            code.mov(__qword_ptr[rbx], rdi);
            code.jmp(next);
            code.Label(ref good);
            code.hlt();
        });
    }

    public Guest Guest { get; }
    public Vm Vm => Guest.Vm;

    /// <summary>Writes a value to so many pages from an address on.</summary>
    public void Write(ulong address, ulong pages, ulong value)
    {
        Prepare(address, pages, value, compare: false);
        Guest.RunToHalt($"writes from {address:x}");
        Check.Equal(0ul, Guest.Vcpu.Regs.Rcx, "pages left");
    }

    /// <summary>Checks that they have it.</summary>
    public void Verify(ulong address, ulong pages, ulong value, string what)
    {
        Prepare(address, pages, value, compare: true);
        Guest.RunToHalt(what);
        KvmRegs regs = Guest.Vcpu.Regs;
        Check.That(regs.Rcx == 0, $"{what}: page at {regs.Rbx:x} differs");
    }

    public void Prepare(ulong address, ulong pages, ulong value, bool compare) => Guest.SetRegs((ref regs) =>
        (regs.Rip, regs.Rbx, regs.Rcx, regs.Rdi, regs.Rsi) =
            (GuestLayout.Code, address, pages, value, compare ? 1ul : 0));

    public void Dispose() => Guest.Dispose();
}
