// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using System.Text.RegularExpressions;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Host;

namespace SharpKvm.Tests.Abi;

/// <summary>What the shim and the core share in memory: src/Shim/shim.h against src/Hypervisor/Host.</summary>
public partial class ShimTests
{
    private static readonly string s_header = File.ReadAllText(Path.Combine(Root(), "src", "Shim", "shim.h"));

    /// <summary>Fields of <see cref="VcpuShared"/> whose C names are not the same words.</summary>
    private static readonly Dictionary<string, string> s_names = new()
    {
        ["Port"] = "pio", ["RequestBits"] = "requests",
    };

    [Test]
    public void TheSharedPartOfAVcpuIsTheSameInBoth()
    {
        AssertSame("sk_vcpu_shared", Layout.SizeOf(typeof(VcpuShared)), SharedFields());
    }

    [Test]
    public void TheGeneralRegistersStandFirst()
    {
        Dictionary<string, long> values = Ask("offsetof(struct sk_vcpu_shared, gpr)",
            "sizeof(((struct sk_vcpu_shared *)0)->gpr)");
        Assert.That(values.Values, Is.EqualTo(new long[] { 0, 16 * sizeof(ulong) }));
        GuestRegisters registers = default;
        Assert.That((int)Unsafe.ByteOffset(ref Unsafe.As<GuestRegisters, ulong>(ref registers), ref registers[Gpr.R15]),
            Is.EqualTo(15 * sizeof(ulong)));
    }

    [Test]
    public void NothingOfTheSharedPartIsMissingInTheCore()
    {
        string[] inC = [.. Members("sk_vcpu_shared").Select(member => Regex.Replace(member, @"\[\w+\]", ""))];
        IEnumerable<string> inCore = SharedFields().Select(field => field.Path.Split('[')[0]).Append("gpr").Distinct();
        Assert.That(inCore, Is.EquivalentTo(inC));
    }

    [Test]
    public void TheWorldSwitchFindsWhatItLoads()
    {
        Dictionary<string, long> values = Ask("SK_SHARED_CONTROL_BLOCK", "SK_SHARED_SPEC_CTRL");
        Assert.That(values["SK_SHARED_CONTROL_BLOCK"], Is.EqualTo(OffsetOf(nameof(VcpuShared.ControlBlock))));
        Assert.That(values["SK_SHARED_SPEC_CTRL"], Is.EqualTo(OffsetOf(nameof(VcpuShared.SpecCtrl))));
    }

    [TestCase("SK_ENTER_LOAD_DR", (uint)EntryFlags.LoadDebugRegisters)]
    [TestCase("SK_REQUEST_MIGRATED", (uint)VcpuRequests.Migrated)]
    [TestCase("SK_REQUEST_DEAD", (uint)VcpuRequests.Dead)]
    [TestCase("SK_REQUEST_SLOTS", (uint)VcpuRequests.RenewSlots)]
    [TestCase("SK_REQUEST_TRAP", (uint)VcpuRequests.Trap)]
    public void BothGiveABitTheSameMeaning(string name, long value) => Assert.That(Ask(name)[name], Is.EqualTo(value));

    /// <summary>The fields with their names in C, those of the registers among them.</summary>
    private static IEnumerable<FieldLayout> SharedFields() =>
        Layout.Fields(typeof(VcpuShared), field => field.FieldType == typeof(GuestRegisters))
            .Select(field => field with { Path = NameInC(field.Path) });

    private static int OffsetOf(string field) =>
        Layout.Fields(typeof(VcpuShared), _ => false).Single(layout => layout.Path == field).Offset;

    private static void AssertSame(string structure, int size, IEnumerable<FieldLayout> fields)
    {
        FieldLayout[] all = [.. fields];
        string sizeInC = $"sizeof(struct {structure})";
        Dictionary<string, long> values =
            Ask([sizeInC, .. all.SelectMany(field => new[] { Offset(field), Size(field) })]);
        Assert.Multiple(() =>
        {
            Assert.That(size, Is.EqualTo(values[sizeInC]), structure);
            foreach (FieldLayout field in all)
            {
                Assert.That(field.Offset, Is.EqualTo(values[Offset(field)]), field.Path);
                Assert.That(field.Size, Is.EqualTo(values[Size(field)]), $"size of {field.Path}");
            }
        });

        string Offset(FieldLayout field) => $"offsetof(struct {structure}, {field.Path})";
        string Size(FieldLayout field) => $"sizeof(((struct {structure} *)0)->{field.Path})";
    }

    /// <summary>Compiles the structure and the constants alone: the rest of the header needs a kernel.</summary>
    private static Dictionary<string, long> Ask(params string[] expressions)
    {
        CProgram program = new("typedef unsigned long long u64;\ntypedef unsigned int u32;\n"
            + string.Join('\n', Constant().Matches(s_header).Select(match => match.Value)) + '\n'
            + Structure("sk_vcpu_shared"));
        foreach (string expression in expressions)
            program.Ask(expression);
        return program.Run();
    }

    private static string Structure(string name) =>
        Regex.Match(s_header, $@"struct {name} \{{.*?\n\}};\n", RegexOptions.Singleline).Value;

    private static IEnumerable<string> Members(string structure) =>
        Regex.Matches(Structure(structure), @"[\s*](\w+(?:\[\w+\])?);").Select(match => match.Groups[1].Value);

    /// <summary>FirstSecond is first_second.</summary>
    private static string NameInC(string path)
    {
        string name = path.Split('.')[^1];
        return s_names.TryGetValue(name, out string? known)
            ? known
            : Regex.Replace(name, "(?<=[a-z0-9])[A-Z]", match => "_" + match.Value).ToLowerInvariant();
    }

    /// <summary>The root of the sources: the tests run somewhere below it.</summary>
    private static string Root()
    {
        DirectoryInfo? folder = new(AppContext.BaseDirectory);
        while (folder != null && !File.Exists(Path.Combine(folder.FullName, "Kernel.sln")))
            folder = folder.Parent;
        return folder?.FullName ?? throw new DirectoryNotFoundException("the root of the sources");
    }

    [GeneratedRegex(@"^#define SK_\w+\s+\w+$", RegexOptions.Multiline)]
    private static partial Regex Constant();
}
