// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>
/// An event that an entry injects or that an exit interrupted: vector, type, in the upper half an error code. So are
/// SVM's EVENTINJ and EXITINTINFO (APM vol. 2, 15.20), and VMX's interruption information with its error code (SDM vol.
/// 3, 25.8.3 and 25.9.3), which knows more types of software events.
/// </summary>
internal readonly struct EventInjection(ulong value)
{
    public readonly ulong Raw = value;

    private const ulong ErrorCodeValid = 1ul << 11, ValidBit = 1ul << 31;

    public enum EventType : byte
    {
        Interrupt = 0,
        Nmi = 2,
        Exception = 3,
        SoftInterrupt = 4,
        /// <summary>INT1; VMX only.</summary>
        PrivilegedException = 5,
    }

    public static EventInjection Of(EventType type, byte vector) => new(ValidBit | (ulong)type << 8 | vector);

    public static EventInjection Of(byte vector, uint errorCode) =>
        new(ValidBit | ErrorCodeValid | (ulong)EventType.Exception << 8 | vector | (ulong)errorCode << 32);

    public bool Valid => (Raw & ValidBit) != 0;
    public byte Vector => (byte)Raw;
    public EventType Type => (EventType)((Raw >> 8) & 7);
    /// <summary>It came by itself, and not by INT n, INT3, INTO or INT1.</summary>
    public bool IsEvent => Valid && Type < EventType.SoftInterrupt
        && !(Type == EventType.Exception && new Vector(Vector).IsSoftException);
    public bool HasErrorCode => (Raw & ErrorCodeValid) != 0;
    public uint ErrorCode => (uint)(Raw >> 32);
}
