// SPDX-License-Identifier: GPL-2.0-only
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace SharpKvm.Tests.Abi;

/// <summary>Where a field stands in a structure of the core, and how long it is.</summary>
internal readonly record struct FieldLayout(string Path, int Offset, int Size);

/// <summary>The layout of the core's structures, by reflection.</summary>
internal static class Layout
{
    public static int SizeOf(Type type) => (int)typeof(Unsafe).GetMethod(nameof(Unsafe.SizeOf))!
        .MakeGenericMethod(type).Invoke(null, null)!;

    /// <summary>
    /// All fields with the path that C would write; a structure for which <paramref name="opens"/> says so is
    /// replaced by its own fields.
    /// </summary>
    public static IEnumerable<FieldLayout> Fields(
        Type type, Func<FieldInfo, bool> opens, string prefix = "", int start = 0)
    {
        foreach (FieldInfo field in type.GetFields(BindingFlags.Instance | BindingFlags.Public))
        {
            int offset = start + (int)Marshal.OffsetOf(type, field.Name);
            string path = prefix + field.Name;
            if (!opens(field))
            {
                yield return new FieldLayout(path, offset, SizeOf(field.FieldType));
                continue;
            }
            foreach (FieldLayout inner in Fields(field.FieldType, opens, path + ".", offset))
                yield return inner;
        }
    }

    /// <summary>All constants of the core whose name matches, with their values.</summary>
    public static IEnumerable<(string Name, long Value)> Constants(Func<string, bool> matches) =>
        from type in typeof(SharpKvm.Abi.kvm_run).Assembly.GetTypes()
        where type.Namespace is { } space && space.StartsWith("SharpKvm", StringComparison.Ordinal)
            && !space.StartsWith("SharpKvm.Tests", StringComparison.Ordinal)
        from field in type.GetFields(BindingFlags.Static | BindingFlags.Public | BindingFlags.NonPublic)
        where field.IsLiteral && matches(field.Name)
        select (field.Name, field.GetRawConstantValue() is ulong large ? (long)large
            : Convert.ToInt64(field.GetRawConstantValue()));
}
