// SPDX-License-Identifier: GPL-2.0-only
using System.Reflection;
using System.Text.RegularExpressions;
using NUnit.Framework;

namespace SharpKvm.Tests.Abi;

/// <summary>
/// The core's copy of the ABI against the kernel's own header: each structure, field, ioctl, capability and exit
/// reason that the core has, as gcc sees it.
/// </summary>
public class UapiTests
{
    private const string Header = "#include <errno.h>\n#include <linux/kvm.h>\n#include <linux/kvm_para.h>";

    /// <summary>Fields that the header keeps deeper.</summary>
    private static readonly Dictionary<string, string> s_paths = new()
    {
        ["kvm_run.debug"] = "debug.arch",
        ["kvm_run.regs"] = "s.regs",
        ["kvm_guest_debug.debugreg"] = "arch.debugreg",
    };

    private static IEnumerable<Type> Structures => typeof(kvm_run).Assembly.GetTypes()
        .Where(type => type is { Namespace: "SharpKvm.Abi", IsValueType: true, IsEnum: false, IsNested: false })
        // Arrays, the part that two structures share, and the processor's own format.
        .Where(type => type.Name.StartsWith("kvm_", StringComparison.Ordinal)
            && !type.IsDefined(typeof(System.Runtime.CompilerServices.InlineArrayAttribute))
            && type != typeof(kvm_sregs_common));

    [Test]
    public void EveryStructureHasTheHeadersSize()
    {
        CProgram program = new(Header);
        foreach (Type type in Structures)
            program.Ask(SizeInC(type));
        Dictionary<string, long> values = program.Run();

        Assert.That(values, Has.Count.GreaterThan(25));
        Assert.Multiple(() =>
        {
            foreach (Type type in Structures)
                Assert.That(Layout.SizeOf(type), Is.EqualTo(values[SizeInC(type)]), type.Name);
        });

        static string SizeInC(Type type) => $"sizeof(struct {type.Name})";
    }

    [Test]
    public void EveryFieldStandsWhereTheHeaderHasIt()
    {
        CProgram program = new(Header);
        foreach ((Type type, FieldLayout field) in Fields())
        {
            program.Ask(OffsetInC(type, field));
            program.Ask(SizeInC(type, field));
        }
        Dictionary<string, long> values = program.Run();

        Assert.That(values, Has.Count.GreaterThan(300));
        Assert.Multiple(() =>
        {
            foreach ((Type type, FieldLayout field) in Fields())
            {
                Assert.That(field.Offset, Is.EqualTo(values[OffsetInC(type, field)]), $"{type.Name}.{field.Path}");
                Assert.That(field.Size, Is.EqualTo(values[SizeInC(type, field)]), $"size of {type.Name}.{field.Path}");
            }
        });

        static string OffsetInC(Type type, FieldLayout field) =>
            $"offsetof(struct {type.Name}, {PathInC(type, field)})";
        static string SizeInC(Type type, FieldLayout field) =>
            $"sizeof(((struct {type.Name} *)0)->{PathInC(type, field)})";
    }

    [Test]
    public void EveryConstantHasTheHeadersValue()
    {
        (string Name, long Value)[] constants =
            [.. Layout.Constants(name => name.StartsWith("KVM_", StringComparison.Ordinal))];
        CProgram program = new(Header);
        foreach ((string name, _) in constants)
            program.Ask(name);
        Dictionary<string, long> values = program.Run();

        Assert.That(values, Has.Count.GreaterThan(100));
        Assert.Multiple(() =>
        {
            foreach ((string name, long value) in constants)
                Assert.That(value, Is.EqualTo(values[name]), name);
        });
    }

    [Test]
    public void EveryErrnoIsTheHeadersNegated()
    {
        List<FieldInfo> errors = [.. typeof(Errno).GetFields().Where(field => field.Name.StartsWith('E'))];
        CProgram program = new(Header);
        foreach (FieldInfo error in errors)
            program.Ask(error.Name);
        Dictionary<string, long> values = program.Run();

        Assert.Multiple(() =>
        {
            foreach (FieldInfo error in errors)
                Assert.That(error.GetRawConstantValue(), Is.EqualTo(-values[error.Name]), error.Name);
        });
    }

    private static IEnumerable<(Type Type, FieldLayout Field)> Fields() =>
        from type in Structures
        from field in Layout.Fields(type, Opens)
        select (type, field);

    /// <summary>Structures that the header declares in place, and what two structures share.</summary>
    private static bool Opens(FieldInfo field) =>
        field.FieldType == typeof(kvm_sregs_common) || field.FieldType == typeof(x87_environment)
        || field.FieldType.IsNested
        && !field.FieldType.IsDefined(typeof(System.Runtime.CompilerServices.InlineArrayAttribute));

    /// <summary>The path as C writes it; the core has no arrays of single bytes, but pad0, pad1 …</summary>
    private static string PathInC(Type type, FieldLayout field)
    {
        string path = Regex.Replace(field.Path, @"^(common|x87)\.", "");
        if (s_paths.TryGetValue($"{type.Name}.{path}", out string? known))
            return known;
        return type.Name switch
        {
            nameof(kvm_dtable) or nameof(kvm_translation) or nameof(kvm_x86_mce) or nameof(kvm_debugregs)
                or nameof(kvm_tpr_access_ctl) or nameof(kvm_cpuid_entry2) =>
                Regex.Replace(path, @"^(padding|reserved|pad\d?)(\d)$", "$1[$2]"),
            nameof(kvm_vcpu_events) =>
                Regex.Replace(path, @"^(exception|interrupt|nmi|smi|triple_fault)_(?!has_payload|payload)", "$1."),
            _ => path,
        };
    }
}
