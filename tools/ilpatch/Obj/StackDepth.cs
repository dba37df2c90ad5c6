// SPDX-License-Identifier: GPL-2.0-only
namespace IlPatch.Obj;

/// <summary>How deep a method and all that it calls in the core can drive the stack, in bytes. A method that can call
/// itself is counted once and marked: its own loop bound must be seen in the source.</summary>
internal sealed class StackDepth
{
    private const int ReturnAddress = 8;

    private readonly Dictionary<string, Method> _methods;
    private readonly Dictionary<Method, int> _depths = [];
    private readonly HashSet<Method> _open = [];
    private readonly HashSet<Method> _recursive = [];

    public StackDepth(IReadOnlyList<Method> methods)
    {
        _methods = methods.DistinctBy(method => method.Name).ToDictionary(method => method.Name);
    }

    public bool IsRecursive(Method method) => _recursive.Contains(method);

    public int Of(Method method)
    {
        if (_depths.TryGetValue(method, out int known))
        {
            return known;
        }

        if (!_open.Add(method))
        {
            _recursive.Add(method);
            return 0;
        }

        int below = 0;
        foreach (string callee in method.CallsOut)
        {
            if (_methods.TryGetValue(callee, out Method? next))
            {
                below = Math.Max(below, Of(next));
            }
        }

        _open.Remove(method);
        return _depths[method] = ReturnAddress + method.FrameSize + below;
    }
}
