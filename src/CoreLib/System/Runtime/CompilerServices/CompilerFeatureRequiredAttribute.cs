// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime.CompilerServices;

[AttributeUsage(AttributeTargets.All, AllowMultiple = true)]
public sealed class CompilerFeatureRequiredAttribute(string featureName) : Attribute
{
    public string FeatureName => featureName;

    public bool IsOptional { get; set; }
}
