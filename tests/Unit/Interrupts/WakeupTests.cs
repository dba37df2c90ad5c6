// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Interrupts;

namespace SharpKvm.Tests.Interrupts;

/// <summary>
/// Between a CPU that goes to sleep and those that send to it no interrupt is lost: the order of steps that
/// <see cref="Lapic"/> promises, in all interleavings, and the code itself with real threads.
/// </summary>
[TestFixture]
internal sealed class WakeupTests
{
    private enum Step
    {
        /// <summary>Of the sender.</summary>
        SetIrr, SetHint, SetRequest, Kick,
        /// <summary>Of the receiver.</summary>
        TakeRequests, LookAtHint, Search, ClearHint, SearchAgain, MarkAsleep, LookAtRequests, Sleep,
    }

    private static readonly Step[] s_sender = [Step.SetIrr, Step.SetHint, Step.SetRequest, Step.Kick];
    private static readonly Step[] s_receiver =
    [
        Step.TakeRequests, Step.LookAtHint, Step.Search, Step.ClearHint, Step.SearchAgain, Step.MarkAsleep,
        Step.LookAtRequests, Step.Sleep,
    ];

    /// <summary>What both sides see, and how far each of them is.</summary>
    private readonly record struct State(
        bool Irr, bool Hint, bool Request, bool Asleep, bool Woken, int First, int Second, int Receiver);

    [Test]
    public void NoOrderOfStepsLosesAWakeUp([Values] bool hint, [Values(1, 2)] int senders) =>
        Assert.That(LosesWakeUps(s_sender, s_receiver, hint, senders), Is.False);

    private static IEnumerable<TestCaseData> Reversals()
    {
        yield return Sender("the request before the bit in IRR", Step.SetRequest, Step.SetIrr, Step.SetHint, Step.Kick);
        yield return Sender("the hint before the bit in IRR", Step.SetHint, Step.SetIrr, Step.SetRequest, Step.Kick);
        yield return Sender("the kick before the request", Step.SetIrr, Step.SetHint, Step.Kick, Step.SetRequest);
        yield return Sender("no kick", Step.SetIrr, Step.SetHint, Step.SetRequest);
        yield return Receiver("IRR before the requests are taken", Step.LookAtHint, Step.Search, Step.ClearHint,
            Step.SearchAgain, Step.TakeRequests, Step.MarkAsleep, Step.LookAtRequests, Step.Sleep);
        yield return Receiver("no second search", Step.TakeRequests, Step.LookAtHint, Step.Search, Step.ClearHint,
            Step.MarkAsleep, Step.LookAtRequests, Step.Sleep);
        yield return Receiver("the last look before falling asleep", Step.TakeRequests, Step.LookAtHint, Step.Search,
            Step.ClearHint, Step.SearchAgain, Step.LookAtRequests, Step.MarkAsleep, Step.Sleep);

        static TestCaseData Sender(string name, params Step[] steps) =>
            new TestCaseData(steps, s_receiver).SetName($"Other orders do: {name}");
        static TestCaseData Receiver(string name, params Step[] steps) =>
            new TestCaseData(s_sender, steps).SetName($"Other orders do: {name}");
    }

    [TestCaseSource(nameof(Reversals))]
    public void OtherOrdersDo(object sender, object receiver) =>
        Assert.That(LosesWakeUps((Step[])sender, (Step[])receiver, hint: true, senders: 1), Is.True);

    /// <summary>One interrupt at a time, sent when the last one was taken: while the receiver finds no more.</summary>
    [Test]
    public void NoMessageToAnotherThreadIsLost()
    {
        const int Interrupts = 20_000;
        using ApicVm vm = new(0, 1);
        nint target = vm.Vm.Vcpus.Find(1).Address;
        int taken = 0, lost = 0;
        Thread receiver = new(() =>
        {
            ref Vcpu vcpu = ref new KernelRef<Vcpu>(target).Value;
            while (taken < Interrupts && Volatile.Read(ref lost) == 0)
            {
                var requests = (VcpuRequests)Interlocked.Exchange(ref vcpu.Shared.RequestBits, 0);
                if ((requests & VcpuRequests.Event) == 0)
                    Thread.Yield();
                while ((requests & VcpuRequests.Event) != 0 && vcpu.Apic.HighestPending() is >= 0 and int vector)
                {
                    vcpu.Apic.Accept((byte)vector);
                    vcpu.Apic.EndHighest();
                    Volatile.Write(ref taken, taken + 1);
                }
            }
        });
        receiver.Start();
        for (int sent = 0; sent < Interrupts && lost == 0;)
        {
            Assert.That(vm.Send(1, (byte)(0x20 + sent % 7 * 31), level: sent % 2 == 0), Is.EqualTo(1));
            sent++;
            if (!SpinWait.SpinUntil(() => Volatile.Read(ref taken) == sent, TimeSpan.FromSeconds(20)))
                Volatile.Write(ref lost, sent);
        }
        receiver.Join();
        Assert.That(lost, Is.Zero);
    }

    /// <summary>Searches all interleavings for one that ends with a sleeper and its interrupt.</summary>
    private static bool LosesWakeUps(Step[] sender, Step[] receiver, bool hint, int senders)
    {
        State start = new(false, hint, false, false, false, 0, senders == 2 ? 0 : sender.Length, 0);
        HashSet<State> seen = [start];
        Stack<State> open = new(seen);
        while (open.TryPop(out State state))
        {
            List<State> next = [];
            if (state.First < sender.Length)
                next.Add(Send(state with { First = state.First + 1 }, sender, state.First, first: true));
            if (state.Second < sender.Length)
                next.Add(Send(state with { Second = state.Second + 1 }, sender, state.Second, first: false));
            if (receiver[state.Receiver] != Step.Sleep || state.Woken)
                next.Add(Receive(state, receiver));
            if (next.Count == 0 && state.Irr)
                return true;
            foreach (State reached in next.Where(seen.Add))
                open.Push(reached);
        }
        return false;

        State Send(State state, Step[] steps, int step, bool first)
        {
            switch (steps[step])
            {
                case Step.SetIrr when state.Irr:
                    // Coalesced: this sender is through, but for the hint.
                    state = state with { Hint = true };
                    return first ? state with { First = steps.Length } : state with { Second = steps.Length };
                case Step.SetIrr: return state with { Irr = true };
                case Step.SetHint: return state with { Hint = true };
                case Step.SetRequest: return state with { Request = true };
                default: return state with { Woken = state.Asleep };
            }
        }
    }

    /// <summary>One step of the loop, which takes what it finds.</summary>
    private static State Receive(State state, Step[] steps)
    {
        State after = state with { Receiver = state.Receiver + 1 };
        switch (steps[state.Receiver])
        {
            case Step.TakeRequests:
                return after with { Request = false };
            case Step.LookAtHint:
                int behind = 1 + Array.FindLastIndex(steps, step => step is Step.Search or Step.ClearHint
                    or Step.SearchAgain);
                return state.Hint ? after : state with { Receiver = behind };
            case Step.Search when state.Irr:
                return state with { Irr = false, Receiver = 0 };
            case Step.SearchAgain when state.Irr:
                return state with { Irr = false, Hint = true, Receiver = 0 };
            case Step.ClearHint:
                return after with { Hint = false };
            case Step.MarkAsleep:
                return after with { Asleep = true };
            case Step.LookAtRequests when state.Request:
                return state with { Asleep = false, Receiver = 0 };
            case Step.Sleep:
                return state with { Asleep = false, Woken = false, Receiver = 0 };
            default:
                return after;
        }
    }
}
