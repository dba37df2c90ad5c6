// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using Kernel;

namespace Violations;

// Each method breaks one rule of the restricted subset, on the line that its comment names.

internal sealed class Thing
{
    public int Value;
}

internal interface IShape
{
    int Area();
}

internal struct Square : IShape
{
    public int Side;

    public readonly int Area() => Side * Side;
}

internal abstract class Animal
{
    public abstract int Legs();
}

internal delegate int Callback(int value);

[AttributeUsage(AttributeTargets.Field)]
internal sealed class ThreadStaticAttribute : Attribute;

internal static class StaticReference
{
    private static Thing? s_thing;

    public static bool Has() => s_thing is not null;
}

internal static class PerThread
{
    [ThreadStatic]
    private static int s_count;

    public static int Count() => s_count;
}

internal static class FloatField
{
    private static double s_ratio;

    public static void Nothing()
    {
    }
}

internal struct Imports
{
    [KernelImport("imports_instance")]
    public extern void Instance();

    [KernelImport("imports_generic")]
    public static extern void Generic<T>();

    [KernelImport("imports body")]
    public static extern void Misnamed();

    [KernelImport("imports_body")]
    public static void WithBody()
    {
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static extern void Unbound();
}

internal static unsafe class Broken
{
    public static int Allocate()
    {
        var thing = new Thing(); // line of Allocate
        return thing.Value;
    }

    public static int AllocateArray(int size)
    {
        int[] values = new int[size]; // line of AllocateArray
        return values[0];
    }

    public static object Box(int value)
    {
        return value; // line of Box
    }

    public static int Unbox(object value)
    {
        return (int)value; // line of Unbox
    }

    public static int InterfaceCall(IShape shape)
    {
        return shape.Area(); // line of InterfaceCall
    }

    public static int VirtualCall(Animal animal)
    {
        return animal.Legs(); // line of VirtualCall
    }

    public static int Throw(int value)
    {
        if (value < 0)
        {
            throw new Exception(); // line of Throw
        }

        return value;
    }

    public static int TryFinally(int value)
    {
        try
        {
            return value; // line of TryFinally
        }
        finally
        {
            value++;
        }
    }

    public static Callback Delegate()
    {
        return new Callback(Identity); // line of Delegate
    }

    public static int FunctionPointer(int value)
    {
        delegate*<int, int> pointer = &Identity; // line of FunctionPointer
        return pointer(value);
    }

    public static int Text()
    {
        return "text".Length; // line of Text
    }

    public static int FloatingPoint(int value)
    {
        double half = value * 0.5; // line of FloatingPoint
        return (int)half;
    }

    public static Thing? Cast(object value)
    {
        return value as Thing; // line of Cast
    }

    public static bool Reflection()
    {
        Use(typeof(Square)); // line of Reflection
        return true;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Use(Type type)
    {
    }

    private static int Identity(int value) => value;
}
