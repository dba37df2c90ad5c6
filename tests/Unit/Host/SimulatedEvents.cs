// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Tests.Host;

/// <summary>The process's eventfds: who holds them and how often they were signalled.</summary>
internal sealed class SimulatedEvents
{
    public const int BadDescriptor = -9;
    /// <summary>A descriptor of something else.</summary>
    public const int NoEvent = 99;

    private readonly Dictionary<int, (int Holders, int Count)> _events = [];

    public void Create(int descriptor) => _events.Add(descriptor, (0, 0));
    public bool Exists(int descriptor) => _events.ContainsKey(descriptor);
    public int Count(int descriptor) => _events[descriptor].Count;
    public int Holders => _events.Values.Sum(entry => entry.Holders);

    public int TryOpen(int descriptor)
    {
        if (!_events.TryGetValue(descriptor, out (int Holders, int Count) entry))
            return descriptor == NoEvent ? Errno.EINVAL : BadDescriptor;
        _events[descriptor] = (entry.Holders + 1, entry.Count);
        return Errno.Ok;
    }

    public void Signal(int descriptor) =>
        _events[descriptor] = (_events[descriptor].Holders, _events[descriptor].Count + 1);

    public void Close(int descriptor) =>
        _events[descriptor] = (_events[descriptor].Holders - 1, _events[descriptor].Count);
}
