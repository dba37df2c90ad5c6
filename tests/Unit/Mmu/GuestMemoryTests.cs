// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Mmu;

namespace SharpKvm.Tests.Mmu;

[TestFixture]
internal sealed class GuestMemoryTests
{
    private TestMemory _memory = null!;

    /// <summary>Frames 0-3 and 4-7 in two slots that are not neighbours in the process; 8-9 read-only.</summary>
    [SetUp]
    public void SetUp()
    {
        _memory = new TestMemory();
        _memory.AddMemory(5, 0, 4);
        _memory.AddMemory(1, 4, 4);
        _memory.AddMemory(3, 8, 2, flags: 2);
    }

    [TearDown]
    public void TearDown()
    {
        _memory.Destroy();
        _memory.Dispose();
    }

    [Test]
    public void CrossesPagesAndSlots()
    {
        byte[] data = new byte[8 * Page.Size - 200];
        new Random(1).NextBytes(data);
        Assert.That(GuestMemory.Write(ref _memory.Vm, new Gpa(100), data), Is.EqualTo(MemoryAccess.Done));
        byte[] back = new byte[data.Length];
        Assert.That(GuestMemory.Read(ref _memory.Vm, new Gpa(100), back), Is.EqualTo(MemoryAccess.Done));
        Assert.That(back, Is.EqualTo(data));

        byte[] second = new byte[8];
        Assert.That(_memory.Process.Read(TestMemory.UserAddress(1, 0), second));
        Assert.That(second, Is.EqualTo(data[(4 * Page.Size - 100)..][..8]), "each slot has its part");
    }

    [Test]
    public void TellsWhyNot()
    {
        byte[] four = new byte[4];
        ref SharpKvm.Vm.Vm vm = ref _memory.Vm;
        Assert.That(GuestMemory.Read(ref vm, new Gpa(0xa000), four), Is.EqualTo(MemoryAccess.NoMemory));
        Assert.That(GuestMemory.Read(ref vm, new Gpa(0x9ffe), four), Is.EqualTo(MemoryAccess.NoMemory), "half");
        Assert.That(GuestMemory.Write(ref vm, new Gpa(0x9000), four), Is.EqualTo(MemoryAccess.ReadOnly));
        Assert.That(GuestMemory.Write(ref vm, new Gpa(0x7ffe), four), Is.EqualTo(MemoryAccess.ReadOnly), "half");
        Assert.That(GuestMemory.Read(ref vm, new Gpa(0x9000), four), Is.EqualTo(MemoryAccess.Done));
        Assert.That(GuestMemory.Read(ref vm, new Gpa(ulong.MaxValue - 1), four), Is.EqualTo(MemoryAccess.NoMemory));
        Assert.That(GuestMemory.TryRead(ref vm, new Gpa(0xa000), out long _), Is.False);
        Assert.That(GuestMemory.TryWrite(ref vm, new Gpa(0x8000), 1L), Is.False);
        _memory.Process.Unmap(TestMemory.UserAddress(1, 0), 4);
        Assert.That(GuestMemory.Read(ref vm, new Gpa(0x3ffe), four), Is.EqualTo(MemoryAccess.Fault));
        Assert.That(GuestMemory.Write(ref vm, new Gpa(0x4000), four), Is.EqualTo(MemoryAccess.Fault));
        Assert.That(GuestMemory.CompareExchange(ref vm, new Gpa(0x4000), 8, 0, 1, out _),
            Is.EqualTo(MemoryAccess.Fault));
    }

    [Test]
    public void AcceptsNothing()
    {
        Assert.That(GuestMemory.Read(ref _memory.Vm, new Gpa(8), []), Is.EqualTo(MemoryAccess.Done));
        Assert.That(GuestMemory.Write(ref _memory.Vm, new Gpa(8), []), Is.EqualTo(MemoryAccess.Done));
    }

    [TestCase(0x3ff8UL, false, ExpectedResult = true)]
    [TestCase(0x3ff8UL, true, ExpectedResult = true)]
    [TestCase(0x8000UL, false, ExpectedResult = true)]
    [TestCase(0x8000UL, true, ExpectedResult = false)]
    [TestCase(0xa000UL, false, ExpectedResult = false)]
    [TestCase(0xffff_ffff_ffff_f000UL, false, ExpectedResult = false)]
    public bool KnowsWhatIsThere(ulong address, bool write) =>
        GuestMemory.IsMemory(ref _memory.Vm, new Gpa(address), write);

    [TestCase(1, 0x80UL)]
    [TestCase(2, 0x8001UL)]
    [TestCase(4, 0x8000_0001UL)]
    [TestCase(8, 0x8000_0000_0000_0001UL)]
    public void ExchangesAtomically(int size, ulong value)
    {
        ref SharpKvm.Vm.Vm vm = ref _memory.Vm;
        Gpa address = new(0x2ff8);
        Assert.That(GuestMemory.CompareExchange(ref vm, address, size, 0, value, out bool first),
            Is.EqualTo(MemoryAccess.Done));
        Assert.That(GuestMemory.CompareExchange(ref vm, address, size, 0, 5, out bool second),
            Is.EqualTo(MemoryAccess.Done));
        Assert.That((first, second), Is.EqualTo((true, false)));
        Assert.That(GuestMemory.TryRead(ref vm, address, out ulong stored) ? stored : 0, Is.EqualTo(value));
        Assert.That(GuestMemory.CompareExchange(ref vm, new Gpa(0x8000), size, 0, 1, out _),
            Is.EqualTo(MemoryAccess.ReadOnly));
        Assert.That(GuestMemory.CompareExchange(ref vm, new Gpa(0xb000), size, 0, 1, out _),
            Is.EqualTo(MemoryAccess.NoMemory));
    }
}
