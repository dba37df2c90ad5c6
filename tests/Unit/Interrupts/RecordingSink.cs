// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Interrupts;

namespace SharpKvm.Tests.Interrupts;

/// <summary>Keeps the messages that it gets and answers that each reached so many CPUs.</summary>
internal struct RecordingSink() : IInterruptSink
{
    public readonly List<InterruptMessage> Messages = [];
    public int Reaches = 1;

    public readonly int Deliver(in InterruptMessage message)
    {
        Messages.Add(message);
        return Reaches;
    }
}
