// SPDX-License-Identifier: GPL-2.0-only
using System.Net.Sockets;
using System.Text;

namespace SharpKvm.Lab;

/// <summary>A Unix socket that the emulator connects to; its path is short enough for one.</summary>
internal sealed class UnixServer : IDisposable
{
    private readonly Socket listener = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
    private Socket? peer;

    public UnixServer(string name)
    {
        Path = System.IO.Path.Combine(System.IO.Path.GetTempPath(), $"lab-{Guid.NewGuid():N}-{name}");
        listener.Bind(new UnixDomainSocketEndPoint(Path));
        listener.Listen(1);
    }

    public string Path { get; }

    public async Task<StreamReader?> Accept()
    {
        try
        {
            peer = await listener.AcceptAsync();
            return new StreamReader(new NetworkStream(peer), Encoding.UTF8);
        }
        catch (SocketException)
        {
            return null;
        }
    }

    public void Send(string text)
    {
        try
        {
            peer?.Send(Encoding.UTF8.GetBytes(text));
        }
        catch (SocketException)
        {
            // It is gone already.
        }
    }

    public void Dispose()
    {
        listener.Dispose();
        File.Delete(Path);
    }
}
