// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;
using System.Reflection;
using System.Text.RegularExpressions;
using Mono.Cecil;
using NUnit.Framework;
using Instruction = Mono.Cecil.Cil.Instruction;

namespace SharpKvm.Tests;

/// <summary>
/// Dependencies between the rooms of the core point one way, and each is as small as docs/architecture.md says.
/// </summary>
public sealed partial class RoomTests
{
    private const int CoreBudget = 12_000;

    private static readonly string[] s_lowest = ["Abi", "Arch", "Host"];
    private static readonly string[] s_machine = [.. s_lowest, "Cpu", "Interrupts", "Mmu", "Paravirt"];

    private static IEnumerable<TestCaseData> Rooms =>
    [
        .. s_lowest.Select(room => new TestCaseData(room, s_lowest)),
        new("Emulator", s_lowest), new("Mmu", s_lowest),
        // What a CPU and its interrupts are is told in terms of each other.
        new("Interrupts", s_machine), new("Paravirt", s_machine), new("Cpu", (string[])[.. s_machine, "Vm"]),
        new("Svm", (string[])[.. s_machine, "Vm"]), new("Vmx", (string[])[.. s_machine, "Vm"]),
        new("Vm", (string[])[.. s_machine, "Emulator"]),
    ];

    [TestCaseSource(nameof(Rooms))]
    public void KnowsNoOther(string room, string[] others)
    {
        using ModuleDefinition module = ModuleDefinition.ReadModule(Assembly.GetExecutingAssembly().Location);
        HashSet<string> wrong = [];
        foreach (TypeDefinition type in module.GetTypes().Where(type => RoomOf(type) == room))
        {
            foreach (TypeReference used in Mentioned(type).SelectMany(Parts))
            {
                if (RoomOf(used) is { } other && other != room && !others.Contains(other))
                    wrong.Add($"{type.Name} uses {other}.{used.Name}");
            }
        }
        Assert.That(wrong, Is.Empty);
    }

    /// <summary>Lines of code: neither blank nor a comment.</summary>
    [Test]
    public void AreWithinTheirBudgets()
    {
        string root = AppContext.BaseDirectory;
        while (!File.Exists(Path.Combine(root, "docs", "architecture.md")))
            root = Path.GetDirectoryName(root) ?? throw new FileNotFoundException("no docs/architecture.md above");
        string core = Path.Combine(root, "src", "Hypervisor");
        Dictionary<string, int> budgets = File.ReadLines(Path.Combine(root, "docs", "architecture.md"))
            .Select(line => BudgetRow().Match(line)).Where(match => match.Success)
            .ToDictionary(match => match.Groups[1].Value,
                match => int.Parse(match.Groups[2].Value, NumberStyles.AllowThousands, CultureInfo.InvariantCulture));
        Dictionary<string, int> lines = Directory.EnumerateFiles(core, "*.cs", SearchOption.AllDirectories)
            .Where(file => !Path.GetRelativePath(core, file).StartsWith("obj", StringComparison.Ordinal))
            .GroupBy(file => Path.GetRelativePath(core, file).Split('/') is [var room, _, ..] ? room : "above the rooms")
            .ToDictionary(room => room.Key, room => room.Sum(file => File.ReadLines(file).Count(IsCode)));
        Assert.That(lines.Keys, Is.SubsetOf(budgets.Keys));
        Assert.That(lines.Where(room => room.Value > budgets[room.Key]), Is.Empty);
        Assert.That(lines.Keys.Sum(room => budgets[room]), Is.LessThanOrEqualTo(CoreBudget));
    }

    private static bool IsCode(string line) =>
        line.AsSpan().Trim() is { Length: > 0 } text && !text.StartsWith("//") && text[0] != '*';

    /// <summary>A row of the table: room, lines, budget.</summary>
    [GeneratedRegex(@"^\| (\w[\w ]*) \| [\d,]+ \| ([\d,]+) \|")]
    private static partial Regex BudgetRow();

    /// <summary>
    /// The room of a type of the core, the second part of its namespace. The VM itself belongs to all, like its vCPUs.
    /// </summary>
    private static string? RoomOf(TypeReference type)
    {
        while (type.DeclaringType is { } outer)
            type = outer;
        return type.FullName != "SharpKvm.Vm.Vm" && type.Namespace.Split('.') is ["SharpKvm", var room] ? room : null;
    }

    private static IEnumerable<TypeReference> Mentioned(TypeDefinition type) =>
    [
        .. type.Fields.Select(field => field.FieldType),
        .. type.Methods.Where(method => method.HasBody).SelectMany(method => method.Body.Instructions)
            .SelectMany(Mentioned),
        .. type.Methods.SelectMany(method => method.Parameters).Select(parameter => parameter.ParameterType),
        .. type.Methods.Select(method => method.ReturnType),
    ];

    private static IEnumerable<TypeReference> Mentioned(Instruction instruction) => instruction.Operand switch
    {
        TypeReference type => [type],
        GenericInstanceMethod method => [method.DeclaringType, .. method.GenericArguments],
        MemberReference member => [member.DeclaringType],
        _ => [],
    };

    /// <summary>What a type is made of: arguments of generic types, what is behind references.</summary>
    private static IEnumerable<TypeReference> Parts(TypeReference type) => type switch
    {
        GenericInstanceType instance => [instance.ElementType, .. instance.GenericArguments.SelectMany(Parts)],
        TypeSpecification specification => Parts(specification.ElementType),
        _ => [type],
    };
}
