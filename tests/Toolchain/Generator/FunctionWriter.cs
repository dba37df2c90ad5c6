// SPDX-License-Identifier: GPL-2.0-only
using System.Text;

namespace Toolchain.Generator;

/// <summary>Writes one random function: <c>ulong Run(ulong a, ulong b, ulong c, byte* memory)</c>, where memory has
/// 256 bytes.</summary>
internal sealed class FunctionWriter(Random random, int number)
{
    private const int MemorySize = 256;
    private const int Parameters = 4;

    private static readonly string[] BitCounts = ["PopCount", "LeadingZeroCount", "TrailingZeroCount", "Log2"];

    private readonly StringBuilder _text = new();
    private readonly List<string> _locals = ["a", "b", "c", "x"];
    private int _names;

    public string Write()
    {
        _text.Append($$"""
            internal static unsafe class F{{number}}
            {
            #if KERNEL
                [RuntimeExport("batch_{{number}}")]
            #endif

            """);
        Method("Run", statements: random.Next(3, 9), depth: 2);

        // The native compiler gives small methods another kind of frame.
        _text.Append("    [MethodImpl(MethodImplOptions.NoInlining)]\n");
        Method("Small", statements: random.Next(1, 3), depth: 0);
        _text.Append("}\n\n");
        return _text.ToString();
    }

    private void Method(string name, int statements, int depth)
    {
        _locals.RemoveRange(Parameters, _locals.Count - Parameters);
        _text.Append($$"""
                public static ulong {{name}}(ulong a, ulong b, ulong c, byte* memory)
                {
                    ulong x = {{Literal()}};
                    Span<byte> bytes = new(memory, {{MemorySize}});

            """);
        for (int i = 0; i < statements; i++)
        {
            Statement(depth);
        }

        string small = depth > 0 ? $" ^ Small({Expression(1)}, {Local()}, {Local()}, memory)" : "";
        _text.Append($"        return {Expression(depth + 1)}{small};\n    }}\n\n");
    }

    private string Fresh(string stem) => $"{stem}{_names++}";

    private string Local() => _locals[random.Next(_locals.Count)];

    private void Line(string line) => _text.Append("        ").Append(line).Append('\n');

    /// <summary>Behind a method: the C# compiler refuses constants that overflow.</summary>
    private string Literal() => $"Data.K({Constant()})";

    private string Constant()
        => random.Next(6) switch
        {
            0 => $"{random.Next(100)}UL",
            1 => $"0x{random.NextInt64():x}UL",
            2 => "ulong.MaxValue",
            3 => $"0x{1UL << random.Next(64):x}UL",
            4 => $"0x{(uint)random.Next():x}UL",
            _ => $"{random.Next(1, 9)}UL",
        };

    private string Expression(int depth)
    {
        if (depth == 0)
        {
            return random.Next(4) == 0 ? Literal() : Local();
        }

        string E() => Expression(depth - 1);
        return random.Next(30) switch
        {
            0 => $"({E()} + {E()})",
            1 => $"({E()} - {E()})",
            2 => $"({E()} * {E()})",
            3 => $"({E()} & {E()})",
            4 => $"({E()} | {E()})",
            5 => $"({E()} ^ {E()})",
            6 => $"({E()} << (int)({E()} & 63))",
            7 => $"({E()} >> (int)({E()} & 63))",
            8 => $"({E()} / ({E()} | 1))",
            9 => $"({E()} % ({E()} | 1))",
            10 => $"(ulong)(uint)({E()})",
            11 => $"(ulong)(long)(int)({E()})",
            12 => $"(ulong)(byte)({E()})",
            13 => $"(ulong)(long)(short)({E()})",
            14 => $"({Condition(depth - 1)} ? {E()} : {E()})",
            15 => $"(ulong)BitOperations.{Pick(BitCounts)}({E()})",
            16 => $"(ulong)BitOperations.{Pick(BitCounts)}((uint)({E()}))",
            17 => $"BitOperations.RotateLeft({E()}, (int)({E()} & 63))",
            18 => $"Math.{Pick("Min", "Max")}({E()}, {E()})",
            19 => $"(ulong)((long)({E()}) >> (int)({E()} & 31))",
            20 => $"(ulong)((long)({E()}) / 7)",
            21 => $"(ulong)((int)({E()}) % 13)",
            22 => $"(ulong)Data.Table8[(int)({E()} & 15)]",
            23 => $"Data.Table64[(int)({E()} % 3)]",
            24 => $"Data.Fold<{Pick("AddOperation", "MixOperation")}>({E()}, {E()})",
            25 => $"BinaryPrimitives.ReverseEndianness({E()})",
            26 => $"(ulong)bytes[(int)({E()} & 255)]",
            27 => $"(Data.Maybe({E()}) ?? {E()})",
            28 => $"BitOperations.RotateRight((uint)({E()}), {random.Next(32)})",
            _ => $"~{E()}",
        };
    }

    private string Condition(int depth)
    {
        string E() => Expression(Math.Max(0, depth));
        return random.Next(6) switch
        {
            0 => $"{E()} < {E()}",
            1 => $"(long)({E()}) <= (long)({E()})",
            2 => $"(uint)({E()}) == (uint)({E()})",
            3 => $"({E()} & {E()}) != 0",
            4 => $"({E()} > {E()} && (int)({E()}) >= 0)",
            _ => $"({E()} == {E()} || (byte)({E()}) != 3)",
        };
    }

    private string Pick(params string[] choices) => choices[random.Next(choices.Length)];

    private string E(int depth = 2) => Expression(depth);

    private void Declare(string value)
    {
        string name = Fresh("v");
        Line($"ulong {name} = {value};");
        _locals.Add(name);
    }

    private void Block(Action body)
    {
        int known = _locals.Count;
        Line("{");
        body();
        Line("}");
        _locals.RemoveRange(known, _locals.Count - known);
    }

    private void Statement(int depth)
    {
        string n;
        switch (random.Next(depth > 0 ? 34 : 28))
        {
            case 0:
                Declare(E(3));
                break;
            case 1:
                Line($"x ^= {E(3)};");
                break;
            case 2:
                Line($"bytes[(int)({E()} & 255)] = (byte)({E()});");
                break;
            case 3:
                string width = Pick("16", "32", "64");
                string narrow = width switch { "16" => "ushort", "32" => "uint", _ => "ulong" };
                n = $"bytes.Slice({random.Next(240)})";
                Line($"BinaryPrimitives.WriteUInt{width}LittleEndian({n}, ({narrow})({E()}));");
                break;
            case 4:
                Line($"MemoryMarshal.Cast<byte, ulong>(bytes)[{random.Next(32)}] = {E()};");
                break;
            case 5:
                Line($"bytes.Slice({random.Next(100)}, {random.Next(100)}).CopyTo(bytes.Slice({random.Next(156)}));");
                break;
            case 6:
                Line($"bytes.Slice({random.Next(200)}, {random.Next(57)}).{Pick("Clear()", $"Fill((byte)({E(1)}))")};");
                break;
            case 7:
                n = Fresh("s");
                Line($"S40 {n} = Data.Make40({E()}, {E()});");
                Line($"S40 {n}c = {n};");
                Line($"{n}c.Inner.A ^= (uint)({E(1)});");
                Declare($"Data.Take40({n}) ^ Data.Take40({n}c)");
                break;
            case 8:
                n = Fresh("s");
                Line($"S200 {n} = Data.Make200({E(1)}, {E(1)});");
                Line($"{n}.Y = {n}.{Pick("X", "Z", "V")};");
                Line($"{n}.W.Outer = Data.Make16({E(1)}, {E(1)});");
                Declare($"{n}.Y.Inner.B + {n}.W.Outer.A + {n}.V.Outer.B");
                break;
            case 9:
                n = Fresh("s");
                Line($"*(S40*)(memory + {random.Next(27) * 8}) = Data.Make40({E(1)}, {E(1)});");
                Line($"S40 {n} = *(S40*)(memory + {random.Next(27) * 8});");
                Declare($"{n}.Outer.A ^ {n}.Inner.D");
                break;
            case 10:
                n = Fresh("t");
                string element = Pick("byte", "ushort", "uint", "ulong");
                Line($"Span<{element}> {n} = stackalloc {element}[{random.Next(1, 60)}];");
                Line($"for (int i = 0; i < {n}.Length; i++)");
                Line("{");
                Line($"    {n}[i] += ({element})({E(1)} + (ulong)i);");
                Line("}");
                Line("");
                Declare($"(ulong){n}[(int)({E(1)} % (ulong){n}.Length)]");
                break;
            case 11:
                n = Fresh("w");
                Line($"Words {n} = default;");
                Line($"for (int i = 0; i < 12; i++)");
                Line("{");
                Line($"    {n}[i] = {E(1)} * (ulong)(i + 1);");
                Line("}");
                Line("");
                Line($"Words {n}c = {n};");
                Line($"{n}c[(int)({E(1)} % 12)] = 1;");
                Declare($"{n}c[(int)({E(1)} % 12)] - {n}[{random.Next(12)}]");
                break;
            case 12:
                n = Fresh("w");
                Line($"Bytes {n} = default;");
                Line($"((Span<byte>){n}).Fill((byte)({E(1)}));");
                Line($"bytes.Slice({random.Next(256 - 20)}, {random.Next(1, 20)}).CopyTo({n});");
                Declare($"Data.Hash({n})");
                break;
            case 13:
                n = Fresh("o");
                Line($"Overlay {n} = default;");
                Line($"{n}.Whole = {E()};");
                Line($"{n}.Top += (ushort)({E(1)});");
                Line($"{n}.Small.B = (ushort){n}.High;");
                Declare($"{n}.Whole + {n}.Low + {n}.Small.B");
                break;
            case 14:
                n = Fresh("q");
                Line($"UInt128 {n} = (UInt128)({E()}) * {E()} + {E(1)};");
                string unsigned = Pick(
                    $"{n} / ({E(1)} | 1)",
                    $"{n} % (((UInt128)({E(1)}) << 64) | 5)",
                    $"{n} << (int)({E(1)} & 127)",
                    $"{n} >> (int)({E(1)} & 127)",
                    $"~{n} - {E(1)}");
                Line($"{n} = {unsigned};");
                Declare($"(ulong){n} ^ (ulong)({n} >> 64)");
                break;
            case 15:
                n = Fresh("q");
                Line($"Int128 {n} = (Int128)(long)({E()}) * (long)({E()});");
                string signed = Pick(
                    $"{n} / ((Int128)(long)({E(1)}) | 1)",
                    $"{n} % 1000003",
                    $"{n} >> {random.Next(128)}",
                    $"-{n} + (int)({E(1)})");
                Line($"{n} = {signed};");
                Declare($"(ulong){n} ^ (ulong)({n} >> 64) ^ ({n} < 0 ? 1UL : 0)");
                break;
            case 16:
                Declare($"Math.BigMul({E()}, {E()}, out ulong {Fresh("low")})");
                break;
            case 17:
                Declare($"checked({E(1)} {Pick("+", "-", "*")} {E(1)})");
                break;
            case 18:
                Declare($"(ulong)checked(({Pick("uint", "ushort", "int", "long", "byte")})({E(1)}))");
                break;
            case 19:
                Declare($"{E(1)} / {E(1)}");
                break;
            case 20:
                Declare($"bytes[(int)({E(1)} % {random.Next(200, 280)})]");
                break;
            case 21:
                Declare($"Data.Fold<CheckedOperation>({E(1)}, {E(1)})");
                break;
            case 22:
                n = Fresh("k");
                Line($"Counter {n} = default;");
                Declare($"Data.Drive(ref {n}, {E(1)}, {random.Next(10)})");
                break;
            case 23:
                Line($"x += new Cursor(bytes.Slice({random.Next(200)}, {random.Next(50)})).Sum();");
                break;
            case 24:
                n = Fresh("s");
                Line($"S16 {n} = Data.Make16({E(1)}, {E(1)});");
                Line($"Data.Pick(ref {n}, {Condition(1)}) += {E(1)};");
                Declare($"Data.Take24(new S24 {{ A = (uint)({E(1)}), D = 7 }}, {n}, {E(1)})");
                break;
            case 25:
                n = Fresh("p");
                Line($"(ulong {n}l, uint {n}h) = Data.Split({E()});");
                Declare($"{n}l * {n}h");
                break;
            case 26:
                n = Fresh("g");
                Line($"Gpa {n} = (new Gpa({E(1)}) + {E(1)}).Page;");
                Declare($"Data.Many({n}.Value, {E(1)}, {E(1)}, (uint)({E(1)}), (byte)({E(1)}), {E(0)}, {E(0)}, "
                    + $"Data.Make16({E(0)}, {E(0)}), {E(0)})");
                break;
            case 27:
                n = Fresh("at");
                Line($"ref ulong {n} = ref *(ulong*)(memory + {random.Next(31) * 8});");
                Line(Pick(
                    $"x += Interlocked.Add(ref {n}, {E(1)});",
                    $"x += Interlocked.Exchange(ref {n}, {E(1)});",
                    $"x += Interlocked.CompareExchange(ref {n}, {E(1)}, {n} & {Literal()});",
                    $"x += Interlocked.Or(ref {n}, {E(1)});",
                    $"x ^= Interlocked.And(ref {n}, {E(1)});",
                    $"x ^= Volatile.Read(ref {n}); Volatile.Write(ref {n}, {E(1)});"));
                break;
            case 28:
                Line($"if ({Condition(2)})");
                Block(() => Statement(depth - 1));
                Line("else");
                Block(() => Statement(depth - 1));
                break;
            case 29:
                n = Fresh("i");
                Line($"for (ulong {n} = 0; {n} < {random.Next(1, 12)}; {n}++)");
                Block(() =>
                {
                    Line($"x = (x * 33) ^ {n};");
                    Statement(depth - 1);
                });
                break;
            case 30:
                Switch(depth, Enumerable.Range(0, random.Next(4, 14)).ToArray());
                break;
            case 31:
                int cases = random.Next(4, 9);
                Switch(depth, [.. Enumerable.Range(0, cases).Select(_ => random.Next(2000)).Distinct()]);
                break;
            case 32:
                Declare($"({E(1)} % 9, (Color)({E(1)} & 7)) switch {{ (0, _) => {E(1)}, (< 4, Color.Red) => {E(1)}, "
                    + $"(_, Color.Green or Color.Blue) => {E(1)}, (5 or 7, _) => 77UL, _ => {E(1)} }}");
                break;
            default:
                Declare($"({E(1)} % {random.Next(3, 6)}) switch {{ 0 => {E(1)}, 1 => {E(1)}, 2 => {E(1)}, 3 => {E(1)}, "
                    + "4 => 5UL, 5 => 6UL, _ => x }");
                break;
        }
    }

    private void Switch(int depth, int[] values)
    {
        Line($"switch ((int)({E(1)} % {values.Max() + 2}))");
        Line("{");
        foreach (int value in values)
        {
            Line($"    case {value}:");
            Block(() => Statement(depth - 1));
            Line("    break;");
        }

        Line("    default:");
        Line($"    x -= {E(1)};");
        Line("    break;");
        Line("}");
        Line("");
    }
}
