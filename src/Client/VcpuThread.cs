// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;

namespace SharpKvm.Client;

/// <summary>A thread that runs a virtual CPU.</summary>
public sealed class VcpuThread : IDisposable
{
    static readonly TimeSpan StopLimit = TimeSpan.FromSeconds(10);

    readonly Vcpu _vcpu;
    readonly Thread _thread;
    int _tid;
    bool _stop;
    Exception? _failure;

    /// <summary>Starts the thread.</summary>
    /// <param name="vcpu">What it runs.</param>
    /// <param name="onExit">Called there after each exit to user space; false ends the thread. A failure of KVM_RUN
    /// ends it as well, an exception of the handler's too; <see cref="Join"/> tells.</param>
    public VcpuThread(Vcpu vcpu, Func<Vcpu, bool> onExit)
    {
        _vcpu = vcpu;
        ThreadSignals.IgnoreByHandler(ThreadSignals.Kick);
        _thread = new Thread(() => Serve(onExit), 256 * 1024) { IsBackground = true };
        _thread.Start();
    }

    /// <summary>The thread has ended.</summary>
    public bool Ended => !_thread.IsAlive;

    /// <summary>It has ended by a failure, which <see cref="Join"/> hands on.</summary>
    public bool Failed => Ended && _failure != null;

    /// <summary>Gets the CPU out of the guest once; it goes on at once.</summary>
    public void Kick() => ThreadSignals.Send(Volatile.Read(ref _tid), ThreadSignals.Kick);

    /// <summary>Waits for the thread's end and hands on what made it end early.</summary>
    /// <exception cref="TimeoutException">It still runs.</exception>
    public void Join(TimeSpan limit)
    {
        if (!_thread.Join(limit))
            throw new TimeoutException($"vCPU {_vcpu.Id} still runs after {limit.TotalSeconds} s");
        if (_failure != null)
            throw new InvalidOperationException($"vCPU {_vcpu.Id}: {_failure.Message}", _failure);
    }

    /// <summary>Gets the CPU out of the guest for good.</summary>
    /// <exception cref="TimeoutException">No signal gets it out of KVM_RUN.</exception>
    public void Stop()
    {
        Volatile.Write(ref _stop, true);
        long start = Stopwatch.GetTimestamp();
        while (!_thread.Join(TimeSpan.FromMilliseconds(1)))
        {
            // In case that the signal comes just before the call.
            _vcpu.Run.ImmediateExit = 1;
            Kick();
            if (Stopwatch.GetElapsedTime(start) > StopLimit)
                throw new TimeoutException($"signals do not get vCPU {_vcpu.Id} out of KVM_RUN");
        }
        _vcpu.Run.ImmediateExit = 0;
    }

    public void Dispose() => Stop();

    void Serve(Func<Vcpu, bool> onExit)
    {
        Volatile.Write(ref _tid, ThreadSignals.CurrentThread);
        try
        {
            while (!Volatile.Read(ref _stop))
            {
                int result = _vcpu.TryRun();
                // EAGAIN: a CPU that waited for INIT or SIPI has been told something.
                if (result is -(int)Errno.EINTR or -(int)Errno.EAGAIN)
                    continue;
                if (result < 0)
                    throw new KvmException("KVM_RUN", (Errno)(-result));
                if (!onExit(_vcpu))
                    return;
            }
        }
        catch (Exception failure)
        {
            _failure = failure;
        }
    }
}
