// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Tests.Host;

/// <summary>
/// Kernel threads that run one at a time. At each call into the simulated host a random number decides who goes on, so
/// that the same seed is the same order of events. Threads that wait for each other, and memory that is freed under
/// a reader, end the run with an exception.
/// </summary>
internal sealed class Schedule
{
    /// <summary>One thread, and why it is not running.</summary>
    private sealed class Participant
    {
        public readonly SemaphoreSlim Turn = new(0);
        public Func<bool> MayRun = () => true;
        public string WaitsFor = "";
        public bool Done;
        /// <summary>The step at which its SRCU section began; -1 outside.</summary>
        public long ReadsSince = -1;
        /// <summary>The step at which it last began to wait for readers.</summary>
        public long Synchronized = -1;
        /// <summary>The step at which its system call began.</summary>
        public long Entered;
    }

    [ThreadStatic]
    private static Schedule? s_schedule;
    [ThreadStatic]
    private static Participant? s_self;

    private readonly Random _random;
    private readonly Participant[] _participants;
    private Exception? _failure;
    private long _step;

    private Schedule(int seed, int threads)
    {
        _random = new Random(seed);
        _participants = [.. Enumerable.Range(0, threads).Select(_ => new Participant())];
    }

    /// <summary>Whether the calling thread is one of a schedule's.</summary>
    public static bool IsRunning => s_schedule != null;

    /// <summary>How often another thread could have gone on so far.</summary>
    public static long Step => s_schedule?._step ?? 0;

    /// <summary>Runs the threads to their ends; what goes wrong in one of them goes wrong here.</summary>
    public static void Run(SimulatedHost host, int seed, params Action[] bodies)
    {
        Schedule schedule = new(seed, bodies.Length);
        Thread[] threads = [.. bodies.Select((body, i) => new Thread(() => schedule.Live(host, i, body)))];
        Array.ForEach(threads, thread => thread.Start());
        schedule.PassOn();
        Array.ForEach(threads, thread => thread.Join());
        if (schedule._failure is { } failure)
            throw new InvalidOperationException($"seed {seed}, step {schedule._step}: {failure.Message}", failure);
    }

    /// <summary>Another thread may go on here. Outside of a schedule nothing happens.</summary>
    public static void Point() => Wait(() => true, "");

    /// <summary>The thread goes on when <paramref name="condition"/> holds, and finds it holding.</summary>
    public static void Wait(Func<bool> condition, string what) => s_schedule?.Pause(condition, what);

    /// <summary>An SRCU section: what is freed meanwhile is not what it can see.</summary>
    public static void Read(Action section)
    {
        s_self!.ReadsSince = s_schedule!._step;
        try
        {
            section();
        }
        finally
        {
            s_self.ReadsSince = -1;
        }
    }

    /// <summary>synchronize_srcu: those who read now are waited for.</summary>
    public static void Synchronize()
    {
        if (s_schedule is not { } schedule)
            return;
        long now = schedule._step;
        s_self!.Synchronized = now;
        Wait(() => schedule._participants.All(other => other.ReadsSince < 0 || other.ReadsSince > now), "readers");
    }

    /// <summary>A system call of the calling thread begins. What it allocates from here on is its own.</summary>
    public static void Enter() => s_self!.Entered = Step;

    /// <summary>
    /// The calling thread frees memory: what an earlier call allocated has been public, and who may still read it has
    /// to be waited for.
    /// </summary>
    public static void CheckReaders(long allocated)
    {
        if (s_schedule is not { } schedule || allocated >= s_self!.Entered)
            return;
        long since = s_self.Synchronized;
        foreach (Participant other in schedule._participants)
        {
            if (other != s_self && other.ReadsSince >= 0 && (since < 0 || other.ReadsSince <= since))
                throw new InvalidOperationException("memory is freed under a reader");
        }
    }

    private void Live(SimulatedHost host, int number, Action body)
    {
        (s_schedule, s_self) = (this, _participants[number]);
        host.Adopt();
        s_self.Turn.Wait();
        try
        {
            if (_failure == null)
                body();
        }
        catch (Exception failure)
        {
            _failure ??= failure;
        }
        s_self.Done = true;
        PassOn();
    }

    private void Pause(Func<bool> condition, string what)
    {
        (s_self!.MayRun, s_self.WaitsFor) = (condition, what);
        PassOn();
        s_self.Turn.Wait();
        if (_failure != null)
            throw new OperationCanceledException("another thread has failed");
    }

    /// <summary>Chooses who goes on. After a failure all do, to their ends.</summary>
    private void PassOn()
    {
        _step++;
        Participant[] left = [.. _participants.Where(participant => !participant.Done)];
        Participant[] ready = [.. left.Where(participant => _failure != null || participant.MayRun())];
        if (ready.Length == 0 && left.Length != 0)
        {
            _failure = new InvalidOperationException(
                $"all wait: {string.Join(", ", left.Select(participant => participant.WaitsFor))}");
            ready = left;
        }
        if (ready.Length != 0)
            ready[_random.Next(ready.Length)].Turn.Release();
    }
}
