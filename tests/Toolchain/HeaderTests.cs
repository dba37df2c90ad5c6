// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using IlPatch;
using IlPatch.Il;
using Mono.Cecil;

// Types that are only looked at.
#pragma warning disable CS0169, CS0649

namespace Toolchain;

/// <summary>What <c>core.h</c> says of the marked types below. That C lays them out so is asserted in the header.</summary>
[TestFixture]
public sealed unsafe class HeaderTests
{
    private sealed class KernelHeaderAttribute(string name) : Attribute
    {
        public string Name => name;
    }

    [KernelHeader("SK_MODE")]
    private enum Mode : byte
    {
        None = 0,
        WithDr7 = 0x10,
    }

    private readonly struct Handle(nint value)
    {
        public readonly nint Value = value;
    }

    private struct Pair<T>
    {
        public T First;
        public ulong Second;
    }

    [InlineArray(3)]
    private struct Three<T>
    {
        private T _first;
    }

    [KernelHeader("sk_shared")]
    private struct Shared
    {
        public const int Constant = 1;

        public byte SmallOne;
        public Pair<ushort> Pair;
        public Mode Mode;
        public Three<uint> Cr3Values;
        public Handle Host;
        public ulong* Tables;
        private bool _isLast;
    }

    [KernelHeader("sk_bad")]
    private struct WithObject
    {
        public object Field;
    }

    [KernelHeader("sk_bad"), StructLayout(LayoutKind.Explicit)]
    private struct WithLayout
    {
        [FieldOffset(0)]
        public int Field;
    }

    [Test]
    public void StructHasItsFieldsInCsWords()
    {
        string body = """
            struct sk_shared {
            	u8 small_one;
            	struct {
            	u16 first;
            	u64 second;
            } pair;
            	u8 mode;
            	u32 cr3_values[3];
            	void *host;
            	void *tables;
            	u8 is_last;
            };
            """;
        Assert.That(TextOf<Shared>(), Does.Contain(body));
    }

    [TestCase("SMALL_ONE", 0)]
    [TestCase("PAIR", 8)]
    [TestCase("MODE", 24)]
    [TestCase("CR3_VALUES", 28)]
    [TestCase("HOST", 40)]
    [TestCase("TABLES", 48)]
    [TestCase("IS_LAST", 56)]
    public void OffsetIsThatOfTheRuntime(string field, int offset)
    {
        string text = TextOf<Shared>();
        Assert.That(text, Does.Contain($"#define SK_SHARED_{field} {offset}\n"));
        Assert.That(text, Does.Contain(
            $"static_assert(offsetof(struct sk_shared, {field.ToLowerInvariant()}) == SK_SHARED_{field});\n"));
    }

    [Test]
    public void SizeIsThatOfTheRuntime()
        => Assert.That(TextOf<Shared>(), Does.Contain($"static_assert(sizeof(struct sk_shared) == {sizeof(Shared)});\n"));

    [Test]
    public void EnumIsItsValues()
        => Assert.That(TextOf<Mode>(), Does.Contain("#define SK_MODE_NONE 0x0\n#define SK_MODE_WITH_DR7 0x10\n"));

    [Test]
    public void UnmarkedTypesStayOut() => Assert.That(TextOf<Handle>(), Does.Not.Contain("void *"));

    [Test]
    public void WhatCannotBeSaidInCIsRefused()
    {
        Assert.That(() => TextOf<WithObject>(), Refused("HeaderTests.WithObject: has a field of the type Object"));
        Assert.That(() => TextOf<WithLayout>(), Refused("HeaderTests.WithLayout: has a layout of its own"));
    }

    private static NUnit.Framework.Constraints.IResolveConstraint Refused(string what)
        => Throws.TypeOf<ViolationException>().With.Message.Contains(what);

    private static string TextOf<T>()
    {
        using ModuleDefinition module = ModuleDefinition.ReadModule(typeof(T).Assembly.Location);
        return NativeHeader.TextOf([(TypeDefinition)module.LookupToken(typeof(T).MetadataToken)]);
    }
}
