// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Sends a signal to the thread that made it, again and again from a given time on, until disposed: so that
/// a guest that never stops leaves KVM_RUN with EINTR.</summary>
sealed class Kicker : IDisposable
{
    readonly ManualResetEventSlim _done = new();
    readonly Thread _thread;

    public Kicker(Vcpu vcpu, TimeSpan after, int signal = Process.SigUsr1)
    {
        Process.IgnoreByHandler(signal);
        int target = Process.CurrentThread;
        _thread = new Thread(() =>
        {
            if (_done.Wait(after))
                return;
            Fired = true;
            do
            {
                // In case that the signal comes just before the call.
                vcpu.Run.ImmediateExit = 1;
                Process.Signal(target, signal);
            }
            while (!_done.Wait(TimeSpan.FromMilliseconds(20)));
        });
        _thread.Start();
        Vcpu = vcpu;
    }

    /// <summary>The time has come: the CPU is being kicked out.</summary>
    public bool Fired { get; private set; }

    Vcpu Vcpu { get; }

    public void Dispose()
    {
        _done.Set();
        _thread.Join();
        Vcpu.Run.ImmediateExit = 0;
        _done.Dispose();
    }
}
