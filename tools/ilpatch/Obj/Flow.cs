// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>Control flow and liveness of one method. Valid until the code changes.</summary>
internal sealed class Flow
{
    private readonly Method _method;
    private readonly ulong[] _liveIn;
    private readonly ulong[] _liveOut;

    public Flow(Method method)
    {
        _method = method;
        method.Renumber();
        int count = method.Code.Count;
        _liveIn = new ulong[count];
        _liveOut = new ulong[count];
        Effects[] effects = [.. method.Code.Select(Effects.Of)];
        bool isChanged = true;
        while (isChanged)
        {
            isChanged = false;
            for (int i = count - 1; i >= 0; i--)
            {
                ulong outgoing = 0;
                foreach (int next in Successors(i))
                {
                    outgoing |= _liveIn[next];
                }

                ulong incoming = effects[i].Reads | (outgoing & ~effects[i].Writes);
                isChanged |= incoming != _liveIn[i];
                _liveOut[i] = outgoing;
                _liveIn[i] = incoming;
            }
        }
    }

    public ulong LiveBefore(int index) => _liveIn[index];

    public ulong LiveAfter(int index) => _liveOut[index];

    public IEnumerable<int> Successors(int index) => Successors(_method, index);

    public static IEnumerable<int> Successors(Method method, int index)
    {
        Op op = method.Code[index];
        if (!op.EndsFlow && index + 1 < method.Code.Count)
        {
            yield return index + 1;
        }

        if (op.Branch is { } target)
        {
            yield return target.Index;
        }
    }

    /// <summary>The operations that control can reach.</summary>
    public static HashSet<Op> Reached(Method method)
    {
        method.Renumber();
        HashSet<Op> reached = [];
        var pending = new Stack<int>([0]);
        while (pending.TryPop(out int index))
        {
            if (reached.Add(method.Code[index]))
            {
                foreach (int next in Successors(method, index))
                {
                    pending.Push(next);
                }
            }
        }

        return reached;
    }

    public static void DropUnreachable(Method method)
    {
        HashSet<Op> reached = Reached(method);
        method.Code = [.. method.Code.Where(reached.Contains)];
        method.Renumber();
    }

    /// <summary>Whether each operation is the target of a branch.</summary>
    public static bool[] Targets(Method method)
    {
        var targets = new bool[method.Code.Count];
        foreach (Op op in method.Code)
        {
            if (op.Branch is { } target)
            {
                targets[target.Index] = true;
            }
        }

        return targets;
    }
}
