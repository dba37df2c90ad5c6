// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime.CompilerServices;

[AttributeUsage(AttributeTargets.All)]
public sealed class CollectionBuilderAttribute(Type builderType, string methodName) : Attribute
{
    public Type BuilderType => builderType;

    public string MethodName => methodName;
}
